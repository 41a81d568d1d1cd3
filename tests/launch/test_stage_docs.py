"""The page of stages and options says what the code says."""

from launch.stage_docs import PAGE, page


def test_the_page_of_stages_is_what_the_options_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "run make docs"
