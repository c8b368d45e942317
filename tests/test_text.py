"""Documents in, disjoint parts, windows and questions out; the same for the same seed, whatever the order."""

import bz2
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused

from shadowcore.errors import ConfigError
from shadowcore.models.tokenizers import byte_tokenizer
from shadowcore.texts import cutting, mediawiki, sources
from shadowcore.texts.documents import Document
from shadowcore.texts.sources import HubText, RandomText

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def written(name, words):
    """A document whose every word tells where it stands, in paragraphs of 40 words."""
    parts = [" ".join(f"{name}{i}" for i in range(at, min(at + 40, words))) for at in range(0, words, 40)]
    return Document.of(name, "\n\n".join(parts))


@pytest.fixture
def documents():
    """Twelve documents, of 60 to 280 words."""
    return [written(f"d{chr(97 + number)}", 60 + 20 * number) for number in range(12)]


# ---- sources


def test_hub_layout_equals_the_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": ["first", "second"]}), tmp_path / "set/train.parquet")
    dataset = str(tmp_path / "set")
    documents, card = sources.fetch(HubText(dataset=dataset, split="train", revision=COMMIT))
    assert [document.text for document in documents] == ["first", "second"]
    assert card["source"]["revision"] == COMMIT
    refused("not available", sources.fetch, HubText(dataset=dataset, split="dev", revision=COMMIT))


def test_random_words_are_those_of_the_seed():
    texts, again, other = (sources.fetch(RandomText(3, 5, seed))[0] for seed in (0, 0, 1))
    assert texts == again and not {one.text for one in texts} & {one.text for one in other}
    assert [len(one.text.split()) for one in texts] == [5, 5, 5]
    refused("source.words: 0 ", RandomText(words=0).check)


MARKUP = """{{Infobox|a=b}}'''Bold''' is a ''word'' ({{lang|x}}; old)<ref name="x">[http://x]</ref> in [[Link|links]] .
[[File:A.png|thumb|A [[picture]]]]
{| class="t"
| cell {| inner |}
|}


== History ==
It is 5&nbsp;km.<!-- hidden --> See [[2001: A Space Odyssey]].

== See also ==
* [[Other]]
[[Category:Words]]"""
PROSE = "Bold is a word (old) in links.\n\nHistory\nIt is 5 km. See 2001: A Space Odyssey."


def test_prose_keeps_sentences_only():
    assert mediawiki.prose(MARKUP) == PROSE


def test_articles_leave_redirects_and_other_pages_out(tmp_path):
    page = "<page><title>{}</title><ns>{}</ns>{}<revision><text>words</text></revision></page>"
    pages = page.format("A", 0, "") + page.format("B", 0, '<redirect title="A"/>') + page.format("Talk:A", 1, "")
    export = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}</mediawiki>'
    (tmp_path / "export.bz2").write_bytes(bz2.compress(export.encode()))
    assert list(mediawiki.articles(tmp_path / "export.bz2")) == [("A", "words")]


# ---- tables


# ---- split


def test_split_is_exact_disjoint_and_complete(documents):
    calibration, evaluation = cutting.split([*documents, documents[0]], 0.25, seed=0)
    assert len(evaluation) == 3 and len(calibration) == 9
    assert {one.id for one in calibration} | {one.id for one in evaluation} == {one.id for one in documents}
    assert cutting.split(documents[::-1], 0.25, seed=0) == (calibration, evaluation)
    assert cutting.split(documents, 0.25, seed=1)[1] != evaluation
    for fraction in (0, 1, -0.5, 1.5, 0.01, 0.99):  # a part would be empty
        refused(f"evaluation_fraction: {fraction}", cutting.split, documents, fraction, seed=0)


# ---- windows


def test_windows_are_the_texts_own_tokens_and_do_not_overlap(documents):
    tokenizer, length = byte_tokenizer(), 50
    ids = {one.id: tokenizer(one.text, add_special_tokens=False)["input_ids"] for one in documents}
    total = sum(len(one) // length for one in ids.values())
    taken = cutting.windows(documents, tokenizer, length, total, seed=0)
    assert len({(one.document_id, one.start) for one in taken}) == total
    for window in taken:
        assert window.start % length == 0 and len(window.ids) == length
        assert list(window.ids) == ids[window.document_id][window.start : window.start + length]
    with pytest.raises(ConfigError, match=f"{total + 1} windows of 50 tokens .*hold {total}"):
        cutting.windows(documents, tokenizer, length, total + 1, seed=0)


def test_windows_share_fairly_and_more_keep_the_earlier(documents):
    tokenizer = byte_tokenizer()
    for count in (5, 12, 20):
        taken = cutting.windows(documents, tokenizer, 50, count, seed=0)
        counts = Counter(one.document_id for one in taken)
        assert len(counts) == min(count, 12) and max(counts.values()) - min(counts.values()) <= 1
        assert taken == cutting.windows(documents, tokenizer, 50, 24, seed=0)[:count]
    assert taken == cutting.windows(documents[::-1], tokenizer, 50, 20, seed=0)
    assert taken != cutting.windows(documents, tokenizer, 50, 20, seed=1)


# ---- questions


def test_the_true_choice_continues_and_the_others_are_from_elsewhere(documents):
    words = {one.id: one.text.split() for one in documents}
    owner = {word: name for name, own in words.items() for word in own}
    rows = cutting.true_continuation(documents, 20, 10, 5, seed=0)
    assert len({row["id"] for row in rows}) == 20
    assert Counter(row["label"] for row in rows) == {0: 5, 1: 5, 2: 5, 3: 5}
    for row in rows:
        context = row["context"].split()
        name = owner[context[0]]
        start = words[name].index(context[0])
        assert words[name][start : start + 15] == context + row["choices"][row["label"]].split()
        owners = [owner[choice.split()[0]] for choice in row["choices"]]
        assert len(set(owners)) == 4 and owners[row["label"]] == name
        assert all(len(choice.split()) == 5 for choice in row["choices"])
    assert rows == cutting.true_continuation(documents[::-1], 20, 10, 5, seed=0)
    assert rows != cutting.true_continuation(documents, 20, 10, 5, seed=1)


def test_too_few_passages_or_documents_are_counted(documents):
    total = sum(len(paragraph.split()) // 15 for one in documents for paragraph in one.text.split("\n\n"))
    refused(f"hold {total}", cutting.true_continuation, documents, total + 1, 10, 5, seed=0)
    refused("3 documents", cutting.true_continuation, documents[:3], 3, 10, 5, seed=0)
    # a document gives one wrong choice at most, and six of these have no passage
    few = [written("la", 200), written("lb", 200), *(written(f"s{chr(97 + n)}", 5) for n in range(6))]
    refused("2 documents have passages with different endings", cutting.true_continuation, few, 4, 10, 5, seed=0)


def test_choices_are_four_different_texts():
    shared = " ".join(f"s{i}" for i in range(10))
    copies = [Document.of(f"{n}", f"{' '.join(f'{n}c{i}' for i in range(10))} {shared}") for n in range(12)]
    unlike = [written(f"u{chr(97 + n)}", 20) for n in range(6)]
    for row in cutting.true_continuation(unlike + copies, 7, 10, 10, seed=0):
        assert len(set(row["choices"])) == 4
