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


def test_the_first_columns_can_all_stand_to_the_left():
    rows = [{"class": "organ", "model": "a", "n": "1"}, {"class": "all", "model": "longer", "n": "20"}]
    assert table(rows, left=2).splitlines() == [
        "class  model    n",
        "-----  ------  --",
        "organ  a        1",
        "all    longer  20",
    ]
