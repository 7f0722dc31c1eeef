"""Shards: any tree, any size, back unchanged; a change touches few; names never meet."""

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opticstream.model.errors import StateError
from opticstream.state.oct_state import OCTProjectState
from opticstream.state.shards import is_intact, json_size, references_in, shards_from_tree, tree_from_shards
from opticstream.state.slugs import MAX_SLUG, project_slug, state_name

LIMIT = 4900

keys = st.one_of(st.integers(0, 500).map(str), st.text("abcdé_-", min_size=1, max_size=12))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=120))
trees = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=30), max_leaves=120)


def big_project(slices=100, mosaics=2, batches=40):
    state = OCTProjectState(project_name="big")
    for s in range(1, slices + 1):
        slice_state = state.get_or_create_slice(s).mark_started().mark("ready")
        for m in range(1, mosaics + 1):
            mosaic = slice_state.get_or_create_mosaic((s - 1) * mosaics + m).mark_started().mark_stitched()
            for b in range(1, batches + 1):
                mosaic.get_or_create_batch(b).mark_started().mark_archived().mark_processed().set_uploaded()
    return state


def tree_of(state):
    return state.model_dump(mode="json", exclude_defaults=True)


def reachable(root, shards):
    found, pending = set(), [root]
    while pending:
        for name in references_in(pending.pop()) - found:
            found.add(name)
            pending.append(shards[name])
    return found


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(keys, trees, max_size=30), st.sampled_from([1000, 1500, 4900]))
def test_a_tree_comes_back_unchanged_from_shards_that_fit(tree, limit):
    root, shards = shards_from_tree(tree, limit=limit)
    assert json_size(root) <= limit
    assert all(json_size(shard) <= limit for shard in shards.values())
    assert tree_from_shards(root, shards.__getitem__) == tree
    assert reachable(root, shards) == set(shards)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and is_intact(name, shard) for name, shard in shards.items())


def test_the_same_tree_gives_the_same_shards_whatever_its_order():
    tree = {"slices": {str(n): {"note": "x" * 300, "id": n} for n in range(100)}}
    turned = {"slices": dict(reversed(tree["slices"].items()))}
    assert shards_from_tree(tree, limit=1000)[0] == shards_from_tree(turned, limit=1000)[0]


def test_a_project_of_8000_batches_fits_into_shards_and_comes_back():
    state = big_project()
    tree = tree_of(state)
    root, shards = shards_from_tree(tree, limit=LIMIT, root_limit=3000)
    assert json_size(tree) > 1_000_000
    assert json_size(root) <= 3000
    assert max(map(json_size, shards.values())) <= LIMIT
    assert len(shards) < 800
    assert OCTProjectState.model_validate(tree_from_shards(root, shards.__getitem__)) == state


@pytest.mark.parametrize("what", ["a batch changes", "a batch is added", "a mosaic is added", "a slice is added"])
def test_a_change_touches_few_shards(what):
    state = big_project(slices=30)
    _, before = shards_from_tree(tree_of(state), limit=LIMIT, root_limit=3000)
    match what:
        case "a batch changes":
            state.slices[17].mosaics[34].batches[20].mark_failed("disk")
        case "a batch is added":
            state.slices[17].mosaics[34].get_or_create_batch(41).mark_started()
        case "a mosaic is added":
            state.slices[17].get_or_create_mosaic(1000).mark_started()
        case _:
            state.get_or_create_slice(31).mark_started()
    _, after = shards_from_tree(tree_of(state), limit=LIMIT, root_limit=3000)
    assert 1 <= len(after.keys() - before.keys()) <= 5


def test_growing_batch_by_batch_always_fits_and_rewrites_little():
    state = OCTProjectState(project_name="growing")
    known, written = set(), 0
    for m in range(1, 5):
        for b in range(1, 41):
            mosaic = state.get_or_create_slice((m + 1) // 2).get_or_create_mosaic(m)
            mosaic.get_or_create_batch(b).mark_started().mark_archived().mark_processed()
            root, shards = shards_from_tree(tree_of(state), limit=LIMIT, root_limit=3000)
            assert json_size(root) <= 3000
            assert all(json_size(shard) <= LIMIT for shard in shards.values())
            written += len(shards.keys() - known)
            known = set(shards)
    assert written / 160 < 3


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(StateError, match="a/b holds a str of 5002 bytes; a shard holds 4900"):
        shards_from_tree({"a": {"b": "x" * 5000}}, limit=LIMIT)
    with pytest.raises(StateError, match=r"'\$shard' at a begins with"):
        shards_from_tree({"a": {"$shard": 1}}, limit=LIMIT)
    with pytest.raises(ValueError, match="at least 1000"):
        shards_from_tree({}, limit=999)


def test_sizes_are_counted_in_bytes_not_characters():
    assert json_size({"é": "ü"}) == len('{"é":"ü"}'.encode())
    tree = {str(n): {"note": "é" * 200} for n in range(100)}
    _, shards = shards_from_tree(tree, limit=1000)
    assert max(len(json.dumps(s, ensure_ascii=False, separators=(",", ":")).encode()) for s in shards.values()) <= 1000


names = st.text(min_size=1, max_size=120).filter(str.strip)


@settings(deadline=None)
@given(names)
def test_any_name_becomes_one_that_servers_accept(name):
    slug = project_slug(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    assert len(slug) <= MAX_SLUG
    assert project_slug(slug) == slug or slug != name


@settings(deadline=None)
@given(names, names)
def test_different_names_have_different_slugs(one, other):
    assume(one != other)
    assert project_slug(one) != project_slug(other)
    assert project_slug(project_slug(one)) != project_slug(one) or project_slug(one) == one


@pytest.mark.parametrize(
    ("one", "other"),
    [("I80", "i80"), ("a b", "a-b"), ("a.b", "a_b"), ("ä", "ö"), ("-a", "a"), ("a--b", "a-b"), ("x" * 90, "x" * 91)],
)
def test_names_that_look_alike_stay_apart(one, other):
    assert project_slug(one) != project_slug(other)


def test_a_name_that_looks_like_a_slug_with_a_checksum_is_not_taken_for_one():
    assert project_slug("I80") == "i80-x" + project_slug("I80")[-12:]
    assert project_slug(project_slug("I80")) != project_slug("I80")


def test_pipelines_and_projects_have_names_of_their_own():
    assert state_name("i80", "oct") == "i80-oct-state"
    assert state_name("i80-oct", "lsm") != state_name("i80", "oct")
    with pytest.raises(ValueError, match="needs a name"):
        project_slug("  ")
