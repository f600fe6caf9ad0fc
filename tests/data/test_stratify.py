import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from cogalign.data.stratify import stratified

SHARES = np.array([0.7, 0.2, 0.1])

tables = st.integers(1, 40).flatmap(
    lambda groups: st.lists(
        st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any), min_size=groups, max_size=groups
    )
)


def run(table: np.ndarray, needed: np.ndarray | None = None, shares: np.ndarray = SHARES, seed: int = 1) -> np.ndarray:
    counts = np.hstack((table.sum(axis=1, keepdims=True), table))
    wanted = np.zeros((len(shares), counts.shape[1]), bool) if needed is None else needed
    return stratified(csr_matrix(counts), shares, np.ones(counts.shape[1]), wanted, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 3))
def test_no_move_of_a_single_group_brings_the_counts_nearer(rows, seed):
    table = np.array(rows)
    home = run(table, seed=seed)
    counts = np.hstack((table.sum(axis=1, keepdims=True), table)).astype(float)

    def cost(homes: np.ndarray) -> float:
        have = np.stack([counts[homes == split].sum(axis=0) for split in range(3)])
        return float((((have - SHARES[:, None] * counts.sum(axis=0)) ** 2) / np.maximum(counts.sum(axis=0), 1)).sum())

    best = cost(home)
    for group in range(len(home)):
        for split in range(3):
            other = home.copy()
            other[group] = split
            assert cost(other) >= best - 1e-6


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 3))
def test_what_the_first_split_needs_it_gets_and_the_second_where_nobody_loses_it(rows, seed):
    table = np.array(rows)
    several = (np.hstack((table.sum(axis=1, keepdims=True), table)) > 0).sum(axis=0)
    needed = np.stack((several > 0, several > 1, several < 0))
    home = run(table, needed, seed=seed)
    for label in range(4):
        where = home[table[:, label] > 0]
        assert not len(where) or (where == 0).any()


def test_a_label_of_two_groups_is_in_both_splits_that_need_it():
    table = np.zeros((200, 4), int)
    table[:, 0] = 1
    table[5, 1] = table[77, 1] = 1
    needed = np.zeros((3, 5), bool)
    needed[:2, 2] = True
    for seed in range(10):
        assert sorted(run(table, needed, seed=seed)[[5, 77]]) == [0, 1]


def test_a_split_without_a_share_stays_empty_and_no_groups_give_no_splits():
    table = np.random.default_rng(0).integers(0, 3, (50, 4)) + 1
    assert set(run(table, np.ones((3, 5), bool), np.array([0.8, 0.0, 0.2])).tolist()) == {0, 2}
    assert run(np.zeros((0, 4), int)).tolist() == []


def test_large_groups_are_counted_by_their_cases():
    table = np.zeros((101, 4), int)
    table[0, 0] = 400
    table[1:, 0] = 1
    home = run(table)
    assert home[0] == 0  # 400 of 500 cases are nearest to the share of 0.7
    assert 50 <= (home == 1).sum() <= 100
