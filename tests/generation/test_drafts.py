from hypothesis import given
from hypothesis import strategies as st

from cogalign.generation.drafts import Drafts

ENDS = (0,)
TEXTS = st.lists(st.lists(st.integers(1, 5), max_size=12).map(lambda ids: [*ids, 0]), min_size=1, max_size=6)


def test_a_known_beginning_goes_on_as_the_text_did() -> None:
    drafts = Drafts([[5, 6, 7, 8, 0], [9, 6, 4, 0]])
    assert drafts.after([], 9, ENDS)[0] == 5
    assert drafts.after([5, 6], 9, ENDS) == [7, 8, 0]
    assert drafts.after([9, 6], 9, ENDS) == [4, 0]
    assert drafts.after([5, 6], 2, ENDS) == [7, 8]


def test_what_followed_more_often_is_guessed() -> None:
    drafts = Drafts([[1, 2, 0], [1, 3, 0], [1, 3, 0]])
    assert drafts.after([1], 9, ENDS) == [3, 0]


def test_after_an_unknown_token_the_last_known_ones_decide() -> None:
    drafts = Drafts([[1, 2, 3, 4, 0]])
    assert drafts.after([1, 9, 3], 9, ENDS) == [4, 0]
    assert drafts.after([1, 9], 9, ENDS) == []


def test_nothing_known_nothing_guessed() -> None:
    assert not Drafts() and Drafts().after([], 5, ENDS) == []
    assert Drafts([[0]]) and Drafts([[1, 0]]).after([1], 0, ENDS) == []


@given(TEXTS, st.data())
def test_a_single_text_is_found_again_from_any_of_its_beginnings(texts: list[list[int]], data: st.DataObject) -> None:
    text = [10 + place for place in range(len(texts[0]) - 1)] + [0]  # no token twice: no context can be mistaken
    begun = data.draw(st.integers(0, len(text) - 1))
    assert Drafts([text]).after(text[:begun], len(text), ENDS) == text[begun:]


@given(TEXTS, st.lists(st.integers(1, 6), max_size=5), st.integers(0, 20))
def test_guesses_keep_to_their_length_and_stop_at_an_end(texts: list[list[int]], begun: list[int], most: int) -> None:
    guess = Drafts(texts).after(begun, most, ENDS)
    assert len(guess) <= most and 0 not in guess[:-1]
    assert {*guess} <= {token for text in texts for token in text}
