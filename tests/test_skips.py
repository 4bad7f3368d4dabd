"""The watch over skipped tests fails a session in CI for what was skipped without leave, and for nothing else."""

import os
import re
from pathlib import Path

import pytest
from support import machine, skips

pytestmark = pytest.mark.slow


pytest_plugins = ["pytester"]

CONFTEST = """
from support import skips
LISTED = "[no cat]\\ntest_them.py::test_cat\\n[no dog]\\ntest_them.py::test_dog  # a comment"
LACKS = {"no cat": lambda: True, "no dog": lambda: False}
def pytest_configure(config):
    config.pluginmanager.register(skips.Watch(skips.read(LISTED), LACKS))
"""
WHOLE_FILE = CONFTEST.replace("test_them.py::test_cat", "test_them.py")


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs a session of its own on the tests given; returns its result."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("CI", "true")
    pytester.makeconftest(CONFTEST)

    def run(tests: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_them=f"import pytest\n{tests}")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return run


def skipping(name: str, reason: str) -> str:
    """A test that is skipped, and one that is not."""
    return f"def test_{name}(): pytest.skip('{reason}')\ndef test_runs(): pass\n"


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_skip_that_is_not_listed_fails_the_session_and_is_named(session, options: tuple[str, ...]) -> None:
    done = session(skipping("new", "no reason"), *options)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*test_them.py::test_new: no reason"])
    done.assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_listed_skip_whose_reason_holds_is_allowed(session, options: tuple[str, ...]) -> None:
    done = session(skipping("cat", "no cat in this house"), *options)
    assert done.ret == 0
    done.stdout.no_fnmatch_line("*skipped, and not in*")


def test_each_case_of_a_listed_test_may_be_skipped(session) -> None:
    case = "@pytest.mark.parametrize('x', ['a[b', 'c::d'])\ndef test_cat(x): pytest.skip('no cat')\n"
    assert session(case).ret == 0


def test_a_listed_file_covers_all_its_tests_and_no_other_reason(session, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(WHOLE_FILE)
    assert session(skipping("kitten", "no cat")).ret == 0
    assert session(skipping("kitten", "tired")).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cat", "tired"), ("cat", "no dog"), ("dog", "no dog")],
    ids=["another reason", "another's reason", "the reason does not hold"],
)
def test_a_listed_test_is_not_excused_by_another_reason(session, name: str, reason: str) -> None:
    assert session(skipping(name, reason)).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_module_that_is_skipped_whole_fails_the_session(
    session, pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_others="def test_runs(): pass")
    done = session("pytest.importorskip('no_such_module_at_all')\n", *options)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*test_them.py: could not import*"])


def test_expected_failures_are_no_skips(session) -> None:
    assert session("@pytest.mark.xfail\ndef test_new(): assert False\n").ret == 0


def test_a_failure_stays_a_failure(session) -> None:
    assert session("def test_new(): assert False\n").ret == pytest.ExitCode.TESTS_FAILED


def test_on_a_developer_s_machine_it_only_warns(session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI")
    done = session(skipping("new", "no reason"))
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*skipped, and not in*", "*test_them.py::test_new: no reason"])


def test_the_list_names_tests_that_exist_and_reasons_that_are_known() -> None:
    expected = skips.read(skips.EXPECTED.read_text())
    assert len(expected) > 10 and set(expected.values()) <= set(machine.LACKS)
    for test in expected:
        file, _, name = test.partition("::")
        beginning = rf"^ *def {name}\(" if name else "^def test_"
        assert re.search(beginning, (machine.ROOT / file).read_text(), re.MULTILINE), test


def test_this_session_is_watched(pytestconfig: pytest.Config) -> None:
    assert isinstance(pytestconfig.pluginmanager.get_plugin("skips"), skips.Watch)
