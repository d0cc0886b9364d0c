"""Every table of every study is declared: what a run makes, what figures read and what the documents say is as declared."""

from __future__ import annotations

import importlib.util
from collections import UserDict
from pathlib import Path

import pandas as pd
import pytest

from moescope import studies
from moescope.report import registry
from moescope.report.style import look
from moescope.study.protocol import Context
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.schema import Column, SchemaFault, Table, schema
from moescope.study.settings import Settings
from tests.synthetic_result import synthetic_result
from tests.synthetic_tables import synthetic_results

ROOT = Path(__file__).parents[1]
STUDIES = sorted(file.parent.name for file in Path(studies.__path__[0]).glob("*/study.py"))
NAMED = pd.DataFrame({"task": ["a"], "n": [4], "as a": [0.75], "as unknown": [0.25]})


def ended(study: str = "route", **tables: pd.DataFrame) -> StudyResult:
    return Context(study, Settings(), Run()).result(title="An example", claims=[], tables=tables)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_says_what_its_tables_and_their_columns_are(study: str) -> None:
    declared = schema(study)
    assert declared
    for table in declared.values():
        assert table.about[-1] in ".?", table.name
        assert table.columns, table.name


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (NAMED.assign(more=1), "column 'more' of table 'named' is not declared"),
        (NAMED.assign(As=1.0), "column 'As' of table 'named' is not declared"),
        (NAMED.drop(columns="n"), "table 'named' lacks the column 'n'"),
        (pd.DataFrame({"other": []}), "table 'named' lacks the column 'task'"),
        (NAMED.assign(n=1.5), "column 'n' of table 'named' is no count"),
        (NAMED.assign(task=1), "column 'task' of table 'named' is no text"),
        (NAMED.assign(**{"as a": 75.0}), "column 'as a' of table 'named' is no share"),
        (NAMED.assign(**{"as a": True}), "column 'as a' of table 'named' is no share"),
    ],
)
def test_a_table_that_is_not_as_declared_is_a_fault_of_the_study(made: pd.DataFrame, fault: str) -> None:
    with pytest.raises(SchemaFault, match=fault):
        ended(named=made)


@pytest.mark.parametrize("study", ["route", "trace", "no such study"])
def test_a_table_that_nobody_declared_is_a_fault_too(study: str) -> None:
    with pytest.raises(SchemaFault, match=rf"{study}: table 'other' is not declared"):
        ended(study, other=NAMED)


def test_a_table_that_no_row_gave_a_column_is_left_out() -> None:
    assert ended(named=NAMED, speed=pd.DataFrame([])).tables.keys() == {"named"}
    assert len(ended(named=NAMED.iloc[:0]).tables["named"]) == 0


def test_what_is_set_beside_published_figures_is_declared_as_well() -> None:
    context = Context("distill", Settings(), Run())
    inner = ended()
    with pytest.raises(SchemaFault, match="column 'somewhere' of table 'published' is not declared"):
        context.beside(inner, title="", published=pd.DataFrame(columns=[*schema("distill")["published"].columns, "somewhere"]))


def test_a_pattern_stands_for_any_number_of_columns() -> None:
    """``as *`` of the tasks' names: none of them is missing, and each is held to the kind that the pattern declares."""
    assert ended(named=NAMED[["task", "n"]]).tables["named"].shape == (1, 2)
    assert ended(named=NAMED.assign(**{"as [x] *?": 0.0})).tables["named"].shape == (1, 5)


def test_an_own_name_comes_before_a_pattern() -> None:
    shape, own = Column("share", "", "of each", optional=True), Column("count", "", "of all")
    table = Table("t", "A table.", {"n_*": shape, "n_all": own})
    assert (table.column("n_all"), table.column("n_a"), table.column("n")) == (own, shape, None)


class Asked(UserDict[str, pd.DataFrame]):
    """Tables that remember which were asked for."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        super().__init__(tables)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


MADE_UP = {result.kind: result for result in [synthetic_result(), *synthetic_results()]}


@pytest.mark.parametrize(
    "kind", sorted(studies.FIGURES.keys() - {"dynamics", "scaling"})
)  # whose figures are those of circuits
def test_what_the_figures_read_is_declared(kind: str) -> None:
    """The made-up tables have the columns that the figures read."""
    declared, result = schema(kind), MADE_UP[kind]
    for name, table in result.tables.items():
        assert [c for c in table if declared[name].column(str(c)) is None] == [], name
    asked = Asked(result.tables)
    object.__setattr__(result, "tables", asked)
    for entry in registry.entries(result):
        with look():
            entry.draw()
    assert asked.names
    assert asked.names <= declared.keys()


def test_the_page_of_tables_is_what_the_tool_writes() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run `python tools/tables.py`"
