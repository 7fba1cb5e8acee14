"""Reference tables of a user's own: what is read, in which order, and what is said of one that cannot be."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.nas.reference import read_reference, write_reference
from apps.nas.table import Row, to_parquet
from apps.nas.trial import Score, Unit
from atom.errors import ConfigError


def csv_file(folder, text, encoding="utf-8"):
    path = folder / "reference.csv"
    path.write_bytes(text.encode(encoding))
    return path


def parquet_file(folder, **columns):
    path = folder / "reference.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def results_file(folder, rows):
    path = folder / "results.parquet"
    path.write_bytes(to_parquet(rows))
    return path


def whole(network, seed, test_accuracy, key="k"):
    return Row.of(Unit(network, "whole", seed), Score(12.5, test_accuracy=test_accuracy), key=key)


def test_one_row_a_network_needs_no_seed(tmp_path):
    path = csv_file(tmp_path, "network,accuracy\nb,71.5\na,70\n")
    assert read_reference(path) == {"b": (71.5,), "a": (70.0,)}


def test_architecture_strings_of_the_benchmark_stand_for_the_networks_of_its_space(tmp_path):
    best = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    path = csv_file(tmp_path, f"network,accuracy\n{best},94.37\n{best},94.1\n|max_pool~0|,60\n")
    assert read_reference(path) == {"nasbench201-333s33": (94.37, 94.1), "|max_pool~0|": (60.0,)}


def test_rows_without_seeds_count_in_their_order(tmp_path):
    path = csv_file(tmp_path, "accuracy,network\n1,a\n3,a\n9,b\n2,a\n")
    assert read_reference(path) == {"a": (1.0, 3.0, 2.0), "b": (9.0,)}


def test_accuracies_come_in_the_order_of_their_seeds_as_numbers(tmp_path):
    lines = [f"a,{seed + 50},{seed}" for seed in (10, 2, 0, 11, 1)]
    path = csv_file(tmp_path, "\n".join(["network,accuracy,seed", *lines]))
    assert read_reference(path) == {"a": (50.0, 51.0, 52.0, 60.0, 61.0)}


@pytest.mark.parametrize("seeds", [[0, 1], [1, 0], [1.0, 0.0]])
def test_seed_zero_of_a_parquet_file_is_a_seed(tmp_path, seeds):
    columns = {"network": ["a", "a"], "accuracy": [50 + seeds[0], 50 + seeds[1]], "seed": seeds}
    assert read_reference(parquet_file(tmp_path, **columns)) == {"a": (50.0, 51.0)}


def test_seeds_may_be_words(tmp_path):
    path = csv_file(tmp_path, "network,accuracy,seed\na,1,second\na,2,first\na,3,7\n")
    assert read_reference(path) == {"a": (3.0, 2.0, 1.0)}


def test_other_columns_are_left_alone(tmp_path):
    path = parquet_file(tmp_path, network=["a"], accuracy=[50], proxy=["whole"], epochs=[3])
    assert read_reference(path) == {"a": (50.0,)}


def test_the_mark_that_spreadsheets_put_first_is_no_part_of_a_name(tmp_path):
    path = csv_file(tmp_path, "network,accuracy\r\nü,70\r\n", encoding="utf-8-sig")
    assert read_reference(path) == {"ü": (70.0,)}


def test_of_an_earlier_run_the_test_accuracies_on_the_whole_set_count(tmp_path):
    rows = [
        whole("a", 1, 81.0),
        whole("a", 0, 80.0),
        Row.of(Unit("a", "atom", 0), Score(44.0), key="k"),
        Row.of(Unit("b", "synflow", 0), Score(9999.0), key="k"),
        Row.failure(Unit("b", "whole", 0), "NotFiniteError: NaN", key="k"),
        whole("b", 1, 33.0),
    ]
    assert read_reference(results_file(tmp_path, rows)) == {"a": (80.0, 81.0), "b": (33.0,)}


def test_an_earlier_run_may_have_become_csv(tmp_path):
    text = "network,proxy,seed,score,test_accuracy\na,whole,0,70,71\na,whole,1,,\nb,atom,0,5,\n"
    assert read_reference(csv_file(tmp_path, text)) == {"a": (71.0,)}


def test_an_earlier_run_without_a_reference_is_refused(tmp_path):
    rows = [
        Row.of(Unit("a", "atom", 0), Score(44.0), key="k"),
        Row.failure(Unit("a", "whole", 0), "x", key="k"),
    ]
    with pytest.raises(ConfigError, match=r"has no rows of the proxy 'whole'; run it with --reference whole"):
        read_reference(results_file(tmp_path, rows))


def test_an_earlier_run_with_two_answers_to_one_question_is_refused(tmp_path):
    rows = [whole("a", 0, 80.0, key="long"), whole("a", 0, 70.0, key="short")]
    with pytest.raises(ConfigError, match=r"network 'a' has seed 0 twice; give one row for each"):
        read_reference(results_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows; expected one for each network and seed"),
        ("network,accuracy\n", "holds no rows"),
        ("network,top1\na,5\n", "has no column accuracy; its columns are network, top1"),
        ("name,top1\na,5\n", "has no column accuracy and network; its columns are name, top1"),
        ("network,accuracy\na,5\nb,much\n", "row 2: accuracy 'much'; expected a number from 0 to 100"),
        ("network,accuracy\na,-1\n", "row 1: accuracy '-1'; expected"),
        ("network,accuracy\na,100.5\n", "row 1: accuracy '100.5'; expected"),
        ("network,accuracy\na,nan\n", "row 1: accuracy 'nan'; expected"),
        ("network,accuracy\na\n", "row 1: accuracy None; expected"),
        ("network,accuracy,seed\na,5,1\na,6,1\n", "network 'a' has seed 1 twice; give one row for each"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_said(tmp_path, text, said):
    path = csv_file(tmp_path, text)
    with pytest.raises(ConfigError, match=f"^--reference {path}.*{said}"):
        read_reference(path)


@pytest.mark.parametrize("accuracy", [None, float("inf"), float("nan"), 101])
def test_a_parquet_file_with_no_accuracy_is_said(tmp_path, accuracy):
    path = parquet_file(tmp_path, network=["a", "b"], accuracy=pa.array([50, accuracy], pa.float64()))
    with pytest.raises(ConfigError, match=r"row 2: accuracy .*; expected a number from 0 to 100, in percent"):
        read_reference(path)


@pytest.mark.parametrize(("low", "high"), [(0, 100)])
def test_the_ends_of_the_range_are_accuracies(tmp_path, low, high):
    assert read_reference(csv_file(tmp_path, f"network,accuracy\na,{low}\nb,{high}\n")) == {
        "a": (0,),
        "b": (100,),
    }


def test_a_table_of_fractions_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no accuracy is above 0\.8704.*fractions.*multiply the column by 100"
    ):
        read_reference(csv_file(tmp_path, "network,accuracy\na,0.8704\nb,0.5\n"))
    assert read_reference(csv_file(tmp_path, "network,accuracy\na,0.5\nb,1.5\n")) == {
        "a": (0.5,),
        "b": (1.5,),
    }


@pytest.mark.parametrize("name", ["a", 'convnet("w,3"), d', "line\nbreak"])
def test_what_a_run_writes_is_read_again(tmp_path, name):
    rows = [whole(name, 0, 80.5), whole(name, 1, 81.0), whole("other", 0, 7.25), whole("other", 1, 7.5)]
    path = tmp_path / "reference.csv"
    path.write_bytes(write_reference(rows))
    assert read_reference(path) == {name: (80.5, 81.0), "other": (7.25, 7.5)}


def test_a_file_that_is_not_there_is_said(tmp_path):
    for name in ("absent.csv", "absent.parquet"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read \\(.*absent"):
            read_reference(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reference.parquet", b"not parquet"),
        ("reference.parquet", b""),
        ("reference.csv", b"network,accuracy\n\xff\xfe,5\n"),
        ("reference.csv", b"network,accuracy\n" + b"a" * 200_000 + b",5\n"),
    ],
    ids=["text", "empty", "not utf-8", "endless field"],
)
def test_a_damaged_file_is_said_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read \(.+\)\.$") as caught:
        read_reference(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["wohle", "table.txt", "table.CSV"])
def test_another_kind_of_file_is_said_with_what_is_known(tmp_path, name):
    with pytest.raises(
        ConfigError, match=r"expected none, whole, or a table that ends in \.csv or \.parquet"
    ):
        read_reference(tmp_path / name)
