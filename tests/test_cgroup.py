"""A container's limits, from faked trees of control groups of both versions."""

from __future__ import annotations

import pytest

from swapfast.cgroup import core_limit, memory_limits

GIB = 2**30


@pytest.fixture
def tree(tmp_path):
    """``tree({file: text}, groups)`` -> (root, list of groups), to be given to what is tested."""

    def make(files, groups="0::/\n"):
        root, listing = tmp_path / "cgroup", tmp_path / "groups"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{text}\n")
        listing.write_text(groups)
        return root, listing

    return make


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("800000 100000", 8),
        ("max 100000", None),
        ("", None),
        ("odd", None),
        ("0 100000", None),
        ("100000 0", None),
    ],
)
def test_the_share_of_cores_of_version_2(text, cores, tree):
    assert core_limit(*tree({"cpu.max": text})) == cores


@pytest.mark.parametrize(("quota", "cores"), [(250000, 3), (-1, None)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_the_share_of_cores_of_version_1(quota, cores, mount, tree):
    files = {f"{mount}/cpu.cfs_quota_us": quota, f"{mount}/cpu.cfs_period_us": 100000}
    assert core_limit(*tree(files, f"4:memory:/\n3:{mount}:/\n0::/\n")) == cores


def test_the_lowest_limit_of_all_groups_above_counts(tree):
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000", "a/b/c/cpu.max": "max 100000"}
    assert core_limit(*tree(files, "0::/a/b/c\n")) == 1


def test_the_share_of_a_job_counts_for_its_steps(tree):
    files = {"cpu/job/cpu.cfs_quota_us": 200000, "cpu/job/cpu.cfs_period_us": 100000}
    assert core_limit(*tree(files, "2:cpu:/job/step\n")) == 2


def test_a_container_whose_path_is_the_machines(tree):
    assert core_limit(*tree({"cpu.max": "200000 100000"}, "0::/docker/4a3f\n")) == 2


def test_the_limit_of_memory_and_what_is_in_use(tree):
    files = {"memory.max": 2 * GIB, "memory.current": GIB, "memory.stat": f"anon 5\ninactive_file {GIB // 4}"}
    assert memory_limits(*tree(files)) == [(2 * GIB, GIB - GIB // 4)]


def test_no_limit_of_memory(tree):
    files = {"memory.max": "max", "memory/memory.limit_in_bytes": 9223372036854771712}
    assert memory_limits(*tree(files, "4:memory:/\n0::/\n")) == []


def test_the_limit_of_memory_of_version_1(tree):
    files = {"memory/pod/memory.limit_in_bytes": GIB, "memory/pod/memory.usage_in_bytes": 5}
    assert (GIB, 5) in memory_limits(*tree(files, "4:memory:/pod/inner\n"))


def test_a_system_without_groups(tmp_path):
    assert core_limit(tmp_path / "none", tmp_path / "none") is None
    assert memory_limits(tmp_path / "none", tmp_path / "none") == []
