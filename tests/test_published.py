"""Published figures: found beside a board, checked, and kept apart from its ranking."""

from pathlib import Path

import pytest

from bench_core.board.published import PUBLISHED_COLUMNS, published_table, read_published
from bench_core.errors import UsageError

SHIPPED = Path(__file__).parent.parent / "results"
HEADER = ",".join(PUBLISHED_COLUMNS)


def put(folder, *rows, header=HEADER):
    folder.mkdir(exist_ok=True)
    (folder / "published.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def test_a_board_without_the_file_has_none(tmp_path):
    (tmp_path / "board").mkdir()
    assert read_published(tmp_path / "board", ["cifar-10"]).empty


def test_only_figures_on_the_boards_data_are_taken(tmp_path):
    put(tmp_path, "A,net,cifar-10,4,90,1.5,x,y,z", "B,net,imagenet,4,70,2.5,x,y,z")
    found = read_published(tmp_path / "board", ["cifar-10", "mnist"])
    assert list(found["method"]) == ["A"]
    assert list(found["average_timesteps"]) == ["1.5"]


def test_a_boards_own_file_goes_before_the_one_beside_it(tmp_path):
    put(tmp_path, "beside,net,mnist,4,90,1.5,x,y,z")
    put(tmp_path / "board", "own,net,mnist,4,90,1.5,x,y,z")
    assert list(read_published(tmp_path / "board", ["mnist"])["method"]) == ["own"]


def test_what_is_not_known_is_not_available_and_figures_stay_as_printed(tmp_path):
    put(tmp_path, "A,net,mnist,,96.10,1.20,x,y,z")
    table = published_table(read_published(tmp_path, ["mnist"]))
    assert list(table.iloc[0]) == ["A", "net", "mnist", "n/a", "96.10", "1.20", "x", "y", "z"]


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("method,network", "A,b", ["columns", "average_timesteps"]),
        (HEADER, "A,net,mnist,four,90,1.5,x,y,z", ["row 1", "timesteps", "'four'"]),
        (HEADER, "A,net,mnist,4,90 %,1.5,x,y,z", ["row 1", "accuracy", "'90 %'"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, header, row, words):
    put(tmp_path, row, header=header)
    with pytest.raises(UsageError) as refused:
        read_published(tmp_path, ["mnist"])
    assert "\n" not in str(refused.value)
    for word in ["published.csv", *words]:
        assert word in str(refused.value)


def test_the_shipped_figures_are_readable_and_say_where_they_come_from():
    found = read_published(SHIPPED / "cifar10", ["cifar-10"])
    assert len(found) > 5
    assert (found[["method", "network", "source", "evidence", "thresholds"]] != "").all(axis=None)
    best = found[found["method"] == "SEENN-II"].iloc[0]
    assert (best["accuracy"], best["average_timesteps"], best["timesteps"]) == ("96.1", "1.08", "4")
