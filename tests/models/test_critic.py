"""The critic's experiment: drafts, what is shown of them, and what a criticism is rewarded for."""

import dataclasses

import numpy as np
import pytest

from models.experiments import critic


def drawn(task, count: int = 300) -> list[dict]:
    random = np.random.default_rng(0)
    return [task.draw(random) for _ in range(count)]


def always(right: float) -> critic.Setup:
    return dataclasses.replace(critic.Setup(), right=right)


def test_a_draft_has_as_many_wrong_digits_as_wanted_and_its_place_is_the_first() -> None:
    for wrong in (1, 2):
        for row in drawn(critic.criticism(always(0.0), wrong)):
            draft = critic.draft_of(row["prompt"])
            places = [i + 1 for i, (d, a) in enumerate(zip(draft, row["answer"])) if d != a]
            assert len(draft) == len(row["answer"])
            assert len(places) == wrong
            assert row["place"] == places[0]
    for row in drawn(critic.criticism(always(1.0))):
        assert (critic.draft_of(row["prompt"]), row["place"]) == (row["answer"], critic.NONE)


@pytest.mark.parametrize(
    ("criticism", "place"),
    [("...", 0), ("x", 1), (".x", 2), ("..x", 3), ("....", None), ("", None), ("x.", None),
     ("...x", None), ("2", None)],
)  # fmt: skip
def test_a_criticism_points_to_the_first_place_that_it_marks(criticism, place) -> None:
    assert critic.place_of("27+85=221:", criticism) == place
    assert place is None or critic.marks("27+85=221:", place) == criticism


def test_the_critic_is_shown_to_agree() -> None:
    setup, random = always(0.0), np.random.default_rng(0)
    task = critic.criticism(setup)
    shown = [critic.place_of(r["prompt"], task.demonstrate(r, random)) for r in drawn(task, 600)]
    places = [row["place"] for row in drawn(task, 600)]
    assert {(s, s == p) for s, p in zip(shown, places)} == {
        (0, False), (1, True), (2, True), (3, True),
    }  # fmt: skip
    assert np.mean(np.array(shown) > 0) == pytest.approx(setup.hints, abs=0.05)


def test_the_reviser_is_shown_to_do_as_it_is_told() -> None:
    task, random = critic.revision(critic.Setup()), np.random.default_rng(0)
    told = set()
    for row in drawn(task):
        draft, place = critic.draft_of(row["prompt"]), row["place"] - 1
        revised = task.demonstrate(row, random)
        changed = [i for i, (old, new) in enumerate(zip(draft, revised, strict=True)) if old != new]
        assert row["prompt"].endswith(f":{row['place']}=")
        assert changed == ([] if row["place"] == critic.NONE else [place])
        wrong = bool(changed) and draft[place] != row["answer"][place]
        assert not wrong or revised[place] == row["answer"][place]
        told.add((row["place"], wrong))
    assert told >= {(0, False), (1, False), (1, True), (3, False), (3, True)}


def test_one_model_is_shown_sums_criticisms_and_revisions() -> None:
    task, random = critic.all_three(critic.Setup()), np.random.default_rng(0)
    ends = {"addition": "=", "criticism": ":", "revision": "="}
    names = []
    for row in drawn(task, 400):
        text = row["prompt"] + task.demonstrate(row, random)
        assert row["prompt"].endswith(ends[row["task"]])
        assert len(row["prompt"]) <= task.longest_prompt
        assert set(text) <= set(task.alphabet)
        names.append(row["task"])
    assert {name: names.count(name) / 400 for name in ends} == pytest.approx(
        {"addition": 0.25, "criticism": 0.5, "revision": 0.25}, abs=0.07
    )


def revise(prompts, criticisms) -> list[str]:
    """A reviser without a model: at a place that is wrong it writes the right digit."""
    found = []
    for prompt, criticism in zip(prompts, criticisms, strict=True):
        asked, draft = prompt.split("=")[0], critic.draft_of(prompt)
        answer, at = str(sum(map(int, asked.split("+"))))[::-1], criticism.find("x")
        found.append(draft if at < 0 else draft[:at] + answer[at] + draft[at + 1 :])
    return found


def test_a_critic_is_rewarded_for_what_becomes_of_the_draft() -> None:
    reward = critic.is_put_right(revise)
    given = reward(["27+85=221:"] * 4, ["..x", ".x", "x", "..."], answer=["211"] * 4)
    assert given == [0.0, 1.0, 0.0, 0.0]
    assert reward(["27+85=211:"], ["..."], answer=["211"]) == [1.0]


def test_a_draft_with_two_wrong_digits_takes_two_turns() -> None:
    def perfect(prompts) -> list[str]:
        criticisms = []
        for prompt in prompts:
            draft = critic.draft_of(prompt)
            known = [critic.marks(prompt, i + 1) for i in range(len(draft))]
            revised = revise([prompt] * len(draft), known)
            wrong = [mark for mark, text in zip(known, revised) if text != draft]
            criticisms.append(wrong[0] if wrong else critic.marks(prompt, critic.NONE))
        return criticisms

    rows = drawn(critic.criticism(always(0.0), wrong=2), 50)
    assert critic.after(perfect, revise, rows, 3) == [0.0, 1.0, 1.0]


def test_what_is_no_criticism_leaves_the_draft_as_it_is() -> None:
    """And is not even shown to the reviser, which is none here."""
    revise = critic.reviser(None, critic.Setup())
    assert revise(["27+85=221:"] * 4, ["", "....", "+", "x."]) == ["221"] * 4


def test_a_revision_of_another_length_leaves_the_draft_as_it_is(monkeypatch) -> None:
    said = {"27+85=221:1=": "12", "27+85=221:2=": "211", "27+85=221:3=": "2.1"}
    monkeypatch.setattr(critic, "written", lambda _model, _task, texts: [said[t] for t in texts])
    revise = critic.reviser(None, critic.Setup())
    assert revise(["27+85=221:"] * 3, ["x", ".x", "..x"]) == ["221", "211", "221"]
