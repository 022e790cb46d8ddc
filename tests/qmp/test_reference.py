"""docs/qmp.md says what the declarations say."""

from blocklayer.qmp.commands import all_commands
from blocklayer.qmp.reference import document
from tests.support.source import ROOT


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "qmp.md").read_text("utf-8") == document(), "run 'make docs'"


def test_the_page_has_every_command() -> None:
    page = document()
    for name in all_commands():
        assert f"\n### {name}\n" in page
