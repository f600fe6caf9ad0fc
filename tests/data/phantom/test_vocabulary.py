import numpy as np

from cogalign.cognition.report import DIAGNOSIS_PREFIX, HEADINGS, render
from cogalign.data.phantom.spec import draw_spec
from cogalign.data.phantom.text import report
from cogalign.data.phantom.vocabulary import PHRASES, QUESTIONS, corpus, words
from cogalign.models.load import LoadedModel
from cogalign.models.tiny import SPECIAL, VOCABULARY, build_tokenizer


def test_the_packaged_tokenizer_is_the_one_the_corpus_gives(tiny: LoadedModel) -> None:
    built = build_tokenizer(corpus(), PHRASES)
    assert built.get_vocab() == tiny.tokenizer.get_vocab() and len(built) == VOCABULARY
    for text in (*QUESTIONS, "Colon, white light, specular reflections.", "<|im_start|>user\nWhat?<|im_end|>"):
        assert built(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
    assert [tiny.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(len(SPECIAL)))


def test_a_report_is_short_in_tokens_and_survives_them(tiny: LoadedModel) -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        text = render(report(draw_spec(rng, 0.95)))
        ids = tiny.tokenizer(text)["input_ids"]
        assert tiny.tokenizer.decode(ids) == text and len(ids) < 100
    for phrase in (*HEADINGS.values(), DIAGNOSIS_PREFIX.rstrip()):
        assert len(tiny.tokenizer(phrase)["input_ids"]) == 1


def test_words_for_exercises_are_always_the_same_and_hold_the_diagnoses() -> None:
    found = words()
    assert found == words() == sorted(set(found))
    assert set(PHRASES) <= set(found) and {"Angiectasia", "bump"} <= {word.strip(".,;") for word in found}
