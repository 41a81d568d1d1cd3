"""The five objectives of GLSCL: features in, losses out (glscl paper; definitions in docs/objectives.md)."""
