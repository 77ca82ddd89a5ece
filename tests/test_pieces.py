"""Right and wrong pieces in the shapes of public code: each is named, alone and two at once; none takes long."""

import re

import pieces_after
import pieces_before
import pytest
import torch

from capsule_lib import checks

PIECES = [*pieces_before.PIECES, *pieces_after.PIECES]
PAIRS = [*pieces_before.PAIRS, *pieces_after.PAIRS]


@pytest.mark.parametrize(("call", "wanted"), [p[1:] for p in [*PIECES, *PAIRS]], ids=[p[0] for p in [*PIECES, *PAIRS]])
def test_a_piece_is_judged_rightly(call, wanted):
    torch.manual_seed(0)
    verdict = call()
    if wanted is True or wanted is None:
        assert verdict.passed is wanted, verdict
    else:
        said = re.sub("`.*?`", "", verdict.message)  # the reader's own line holds many words
        assert verdict.passed is False and all(re.search(words, said) for words in wanted), verdict


def test_there_are_enough_pieces_and_pairs():
    assert len(PIECES) >= 60 and len(PAIRS) >= 20 and all(len(wanted) > 1 for *_, wanted in PAIRS)
    names = [name for name, *_ in [*PIECES, *PAIRS]]
    assert len(set(names)) == len(names)


def test_a_report_says_what_was_looked_at_and_what_was_not():
    report = checks.report(
        squash=pieces_before.ball, dynamic_routing=torch.tanh, images=checks.images(torch.rand(1, 1, 4, 4))
    )
    assert not report and "squash: ✓" in repr(report) and "dynamic_routing: ✗" in repr(report)
    assert "margin_loss: not looked at. Check the margin loss" in repr(report) and "images: ✓" in repr(report)
    table = checks.report(mask=lambda v, y: v["<b>"])._repr_html_()
    assert table.count("<tr>") == 1 + len(checks.reports.CHECKERS) and "&lt;b&gt;" in table and "<b>" not in table
    assert checks.report(squash=pieces_before.ball) and not checks.report()
    odd = checks.report(squash=5, foo=1, capsule_layer=(torch.relu,), weights=(torch.rand(2), "ijdk", None, 4))
    assert all(verdict.passed is None and verdict.message for verdict in odd.verdicts.values())


ANYTHING = [None, ..., 5, 2.5, "squash", b"", [], {}, [1, "2"], object(), torch.rand(3), torch.rand(0, 2, 2), torch.rand(2, 3, 4, 5).long(), lambda: None, lambda *_: "x", torch.nn.Linear(2, 2), int, print]  # fmt: skip


@pytest.mark.parametrize("name", sorted(checks.reports.CHECKERS))
def test_whatever_is_given_the_answer_is_in_words(name):
    check = checks.reports.CHECKERS[name]
    for given in ANYTHING:
        others = {"primary_caps": ANYTHING, "capsule_layer": ANYTHING, "network": ANYTHING}.get(name, [()])
        for other in others:
            try:
                verdict = check(given, other) if name in ("primary_caps", "capsule_layer", "network") else check(given)
            except TypeError as error:
                assert "takes" in str(error) and not isinstance(given, torch.Tensor), (given, error)
                continue
            assert isinstance(verdict, checks.Verdict) and verdict.message and (not verdict or name == "images"), (
                given,
                verdict,
            )
            assert "can't look at this" not in verdict.message, (given, other, verdict)


def test_layouts_that_make_no_sense_are_answered_in_words():
    layer, u = pieces_before.Votes(), pieces_before.U
    for layout in (None, 5, "", "ijd", "ijdkk", "i(jd", "((ijdk))", "ijkd1x"):
        for verdict in (
            checks.routing_layer(layer, "W", layout),
            checks.weights("W", layout, layer),
            checks.squash(pieces_before.ball, layout=layout),
            checks.dynamic_routing(pieces_before.procedure, layout=layout),
            checks.capsule_layer(layer, u, takes=layout),
        ):
            assert not verdict and "layout" in verdict.message and "can't look at" not in verdict.message, (
                layout,
                verdict,
            )


def test_a_layer_and_a_network_are_as_they_were_afterwards():
    layer = pieces_before.Votes()
    before, parameter = layer.W.detach().clone(), layer.W
    checks.routing_layer(layer, "W", "1ijdk", iterations="rounds")
    assert layer.W is parameter and torch.equal(layer.W, before) and layer.rounds == 3 and layer.W.grad is None
    net = pieces_after.Net(drop=True)
    net.conv = torch.nn.Sequential(net.conv, torch.nn.BatchNorm2d(8))
    net.decoder.eval()
    random = torch.get_rng_state()
    state = {name: x.clone() for name, x in net.state_dict().items()}
    checks.network(net, pieces_after.PICTURES)
    assert (
        net.training and not net.decoder.training and all(torch.equal(x, state[k]) for k, x in net.state_dict().items())
    )
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in net.modules())
