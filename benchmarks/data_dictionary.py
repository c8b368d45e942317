"""Write the data dictionary: the columns of every final table as Markdown, from the schemas."""

from shadowcore.schemas import FINAL_TABLES, OUTCOMES, Table

HEADING = "## Data dictionary"


def dictionary() -> str:
    """Markdown sections of all tables; `results/README.md` holds exactly this (a test compares)."""
    return "\n\n".join([HEADING, *(section(table) for table in (*FINAL_TABLES.values(), OUTCOMES))]) + "\n"


def section(table: Table) -> str:
    """One table's columns."""
    rows = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in table.columns.items()]
    lines = [
        f"### {table.name} (schema {table.schema})",
        "",
        f"One row: {table.row}.",
        "",
        "| column | type | meaning |",
    ]
    return "\n".join([*lines, "|---|---|---|", *rows])


if __name__ == "__main__":
    print(dictionary(), end="")
