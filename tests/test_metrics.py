"""metrics: the numbers by hand, and what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from jaxtyping import TypeCheckError
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align_transformers._errors import SpecError
from align_transformers.metrics import Metric, logit_difference, probability

LOGITS = torch.tensor([[1.0, 0.0, 4.0, -2.0], [3.0, 0.0, 2.5, 1.0]])


@pytest.fixture(scope="module")
def tokenizer():
    """Knows " Rome", " Madrid" and "Paris" (without the space); all else falls apart into letters."""
    words = ["Ġ", *"abcdefghijklmnopqrstuvwxyzMPR", "ĠRome", "ĠMadrid", "Paris"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="Ġ"))
    whole_words_or_letters = Regex("ĠRome|ĠMadrid|Paris|.")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(whole_words_or_letters, behavior="isolated"),
        ]
    )
    from tokenizers import decoders

    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_logit_difference_is_target_minus_other_for_each_row():
    assert torch.equal(logit_difference(2, 0)(LOGITS), torch.tensor([3.0, -0.5]))
    assert torch.equal(logit_difference(0, 2)(LOGITS), torch.tensor([-3.0, 0.5]))


def test_probability_is_the_softmax():
    by_hand = LOGITS[:, 2].exp() / LOGITS.exp().sum(dim=-1)
    assert torch.allclose(probability(2)(LOGITS), by_hand)


@pytest.mark.parametrize("metric", [logit_difference(2, 0), probability(2)], ids=lambda m: m.name)
def test_half_precision_logits_are_computed_in_float32(metric):
    logits = torch.tensor([[300.0, 0.0, 302.0, 1.0]], dtype=torch.bfloat16)
    assert metric(logits).dtype == torch.float32
    assert torch.equal(metric(logits), metric(logits.float()))


def test_texts_are_looked_up_and_named(tokenizer):
    metric = logit_difference(" Rome", " Madrid", tokenizer=tokenizer)
    logits = torch.zeros(1, len(tokenizer))
    logits[0, tokenizer.convert_tokens_to_ids("ĠRome")] = 5.0
    logits[0, tokenizer.convert_tokens_to_ids("ĠMadrid")] = 2.0
    assert metric(logits).item() == 3.0
    assert metric.name == "logit(' Rome') - logit(' Madrid')"


def test_a_text_of_several_tokens_is_refused_with_its_pieces_and_the_leading_space(tokenizer):
    with pytest.raises(SpecError, match=r"'Rome' is not one token but 4: \['R', 'o', 'm', 'e'\].*did you mean ' Rome'"):
        probability("Rome", tokenizer=tokenizer)
    with pytest.raises(SpecError, match=r"did you mean 'Paris' \(without the leading space\)"):
        probability(" Paris", tokenizer=tokenizer)
    with pytest.raises(SpecError, match=r"'Pr' is not one token but 2.*first piece 'P'"):
        probability("Pr", tokenizer=tokenizer)


def test_an_empty_text_is_refused(tokenizer):
    with pytest.raises(SpecError, match="'' is not one token but 0"):
        probability("", tokenizer=tokenizer)


def test_a_text_needs_a_tokenizer():
    with pytest.raises(SpecError, match="' Rome' is a text: give tokenizer="):
        logit_difference(" Rome", 3)


@pytest.mark.parametrize(("target", "other", "said"), [(3, 3, "with itself"), (-1, 3, "-1 is negative")])
def test_senseless_tokens_are_refused(target, other, said):
    with pytest.raises(SpecError, match=said):
        logit_difference(target, other)


@pytest.mark.parametrize("metric", [logit_difference(0, 9), logit_difference(9, 0), probability(9)], ids=str)
def test_a_token_outside_the_vocabulary_is_refused(metric):
    with pytest.raises(SpecError, match="9 is outside the vocabulary of 4"):
        metric(LOGITS)


def test_logits_of_all_positions_are_refused():
    with pytest.raises((SpecError, TypeCheckError), match=r"batch,? vocab"):
        probability(0)(LOGITS.unsqueeze(0))


def test_a_users_function_must_give_one_number_an_example():
    with pytest.raises(SpecError, match=r"'all' must give one number an example, shape \(2,\).*gave \(2, 4\)"):
        Metric("all", lambda logits: logits)(LOGITS)


def test_metrics_are_values():
    assert logit_difference(2, 0) == logit_difference(2, 0)
    assert logit_difference(2, 0) != logit_difference(0, 2)
    assert pickle.loads(pickle.dumps(probability(1))) == probability(1)  # so that workers can have them
    with pytest.raises(AttributeError):
        probability(1).name = "other"


def test_the_logits_are_not_changed_and_gradients_pass():
    logits = LOGITS.clone().requires_grad_()
    logit_difference(2, 0)(logits).sum().backward()
    assert torch.equal(logits.detach(), LOGITS)
    assert torch.equal(logits.grad, torch.tensor([[-1.0, 0.0, 1.0, 0.0]] * 2))
