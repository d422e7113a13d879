from nnunet_deconver.cli.tables import table


def test_columns_are_aligned():
    rows = [
        {"name": "a", "number": "1", "longer than cells": "x"},
        {"name": "longer", "number": "1,000", "longer than cells": ""},
    ]
    assert table(rows).splitlines() == [
        "name    number  longer than cells",
        "------  ------  -----------------",
        "a            1                  x",
        "longer   1,000",
    ]
