"""The tokeniser on text as people write it, on text that is tokenised, and on anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.tokens import split, words

RAW = [
    ("It's great.", "it 's great ."),
    (
        "I loved it. The food was good, but don't go!",
        "i loved it . the food was good , but do n't go !",
    ),
    ("loved it. would go again.", "loved it . would go again ."),
    (r"Good.\nBad.\n\nUgly", "good . bad . ugly"),
    ("A film.<br /><br />The end", "a film . the end"),
    ('He said "Hi there." (Really?)', 'he said " hi there . " ( really ? )'),
    ("Mr. Smith can't pay $5.50, or 10%", "mr. smith ca n't pay $ 5.50 , or 10 %"),
    ("10,000 people at 6:30 p.m.", "10,000 people at 6:30 p.m."),
    ("U.S. troops left.", "u.s. troops left ."),
    ("wait...what?!", "wait ... what ? !"),
    ("THEY'LL come; we're here: yes--no", "they 'll come ; we 're here : yes -- no"),
    ("I like it.(Yes.),you know", "i like it . ( yes . ) , you know"),
    ("hydro-quebec n.v.", "hydro-quebec n.v."),
    ("snack-food, and/or o'clock", "snack-food , and/or o'clock"),
    ("  \t ", ""),
]


@pytest.mark.parametrize(("raw", "tokens"), RAW)
def test_raw_text(raw, tokens):
    assert words(raw) == tokens.split()


TOKENISED = [
    "it 's n't the _num_ of <unk> , but _unk .",
    "pierre <unk> N years old will join n.v. hydro-quebec 's board nov. N".lower(),
    "we do n't know `` why '' -- he 'd gone ...",
    "the food was good. but the service was not .",  # the Treebank's rule leaves the first stop
    "( 1. a 2. b ) at 6:30 for $ 10,000 !",
]


@pytest.mark.parametrize("text", TOKENISED)
def test_tokenised_text_stays(text):
    assert words(text) == text.split()


@given(st.lists(st.sampled_from([raw for raw, _ in RAW]), max_size=4))
def test_tokenising_again_changes_nothing(raws):
    once = words(" ".join(raws))
    assert words(" ".join(once)) == once


@given(st.text())
def test_tokenising_again_keeps_every_character(text):
    once = words(text)
    assert "".join(words(" ".join(once))) == "".join(once)


@given(st.text(alphabet=st.sampled_from("aB'.,!?\" n-t:5$%<>_()\\/")))
def test_no_character_is_lost_but_blanks_and_line_ends(text):
    kept = text.replace("\\n", " ").lower()
    assert "".join(words(text)) == "".join(kept.split())


@given(
    st.lists(
        st.text(alphabet="abcxyz-'", min_size=1).filter(lambda w: "'" not in w and "--" not in w)
    )
)
def test_plain_lower_case_words_stay(tokens):
    assert words(" ".join(tokens)) == tokens


def test_split_only_splits():
    assert split(" It's N\tgreat. ") == ["It's", "N", "great."]


# How many lines of the files differ after tokenising: in the short Yelp set those that end in
# "good.", in Yahoo ",i", "yr." and the like. PTB's are for `split`.
ODD = {"snli": 0, "yelp": 182, "yahoo": 6}


@pytest.mark.parametrize("name", ODD)
def test_the_papers_files_come_out_as_they_are(shared_data, name):
    odd = 0
    for part in ("train", "valid", "test"):
        for line in (shared_data / name / f"{part}.txt").read_text("utf-8").split("\n"):
            text = line.split("\t")[-1]
            tokens = words(text)
            odd += tokens != text.lower().split()
            assert "".join(tokens) == text.lower().replace(" ", "")
    assert odd <= ODD[name]
