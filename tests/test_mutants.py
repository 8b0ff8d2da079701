"""make mutants changes the line that it names, runs the tests that it names, and refuses what does not fit."""

import mutants
import pytest
from mutants import Mutant, Stale

CODE = "def double(x):\n    y = 2 * x\n    return y\n\n\ndef same(x):\n    return x\n"
TABLE = """# a comment
@ code.py | test_code.py -k "double or same"
- y = 2 * x
+ y = 3 * x
- return x
+ return +x
! no number differs
"""


def test_a_table_is_read_as_changes_with_their_tests_and_reasons():
    tests = ("test_code.py", "-k", "double or same")
    assert mutants.read(TABLE) == [
        Mutant("code.py", tests, "y = 2 * x", "y = 3 * x"),
        Mutant("code.py", tests, "return x", "return +x", "no number differs"),
    ]
    with pytest.raises(Stale, match="line 2"):
        mutants.read("@ code.py | test_code.py\n* y = 2 * x\n")


def test_a_change_keeps_the_indentation_and_all_other_lines():
    (first, _) = mutants.read(TABLE)
    assert first.mutated(CODE) == CODE.replace("    y = 2 * x", "    y = 3 * x")


@pytest.mark.parametrize(
    ("line", "new", "message"), [("y = 4 * x", "", "occurs 0 times"), ("return y", "return (", r"was never closed")]
)
def test_a_line_that_is_gone_or_a_change_that_is_no_python_is_stale(line, new, message):
    with pytest.raises(Stale, match=message):
        Mutant("code.py", (), line, new).mutated(CODE)
    with pytest.raises(Stale, match="occurs 2 times"):
        Mutant("code.py", (), "return y", "pass").mutated(CODE + "    return y\n")


@pytest.mark.long
def test_a_change_is_seen_if_a_test_fails_and_missing_tests_are_stale(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "test_code.py").write_text("from code_ import double\n\n\ndef test_double():\n    assert double(2) == 4\n")
    for factor, seen in ((2, False), (3, True)):
        (root / "code_.py").write_text(CODE.replace("2", str(factor)))
        assert mutants.is_seen(root, ("test_code.py",)) == seen
    with pytest.raises(Stale, match="ended with 5"):
        mutants.is_seen(root, ("test_code.py", "-k", "nothing"))
