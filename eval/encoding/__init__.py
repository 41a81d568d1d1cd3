"""From images and texts to features: encoders, a cache, labelled images, prompts and attention maps."""
