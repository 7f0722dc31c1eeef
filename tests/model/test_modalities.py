"""One table of modalities: complete, free of contradictions, and the only one."""

from __future__ import annotations

import ast
import typing
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from opticstream.config.modality_names import OneOf
from opticstream.config.overrides import models_in
from opticstream.config.project import ProjectConfig
from opticstream.model import modalities
from opticstream.model.modalities import KINDS, MODALITIES, Made, Modality, ValueKind, described, described_stack

SOURCE = Path(modalities.__file__).resolve().parents[1]
MODULES = sorted(p for p in SOURCE.rglob("*.py") if "testing" not in p.relative_to(SOURCE).parts)


class TestTheTable:
    def test_every_kind_has_a_blend_and_a_resampling(self):
        assert set(KINDS) == set(typing.get_args(ValueKind))
        for rules in KINDS.values():
            assert rules.blend in typing.get_args(modalities.Blend)
            assert rules.resampling in typing.get_args(modalities.Resampling)

    def test_entries_are_found_by_their_own_name_and_say_what_they_hold(self):
        for name, entry in MODALITIES.items():
            assert entry.name == name
            assert described(name) is entry
            assert described_stack(f"normal_{name}") is entry
            assert entry.meaning

    def test_a_name_that_is_not_in_it_is_an_intensity_of_the_callers_own(self):
        own = described("cross_section")
        assert (own.name, own.kind, own.in_db, own.intensity) == ("cross_section", "scalar", False, True)
        assert own.mosaic_header == "cross_section, as in the tiles; NaN: no data"

    @pytest.mark.parametrize(
        ("facts", "why"),
        [
            ({"kind": "label"}, "cannot be blended"),
            ({"kind": "vector"}, "cannot be blended"),
            ({"in_db": True}, "intensity=True"),
            ({"colours": "wheel"}, "take the wheel"),
            ({"kind": "axial"}, "take the wheel"),
            ({"made": ()}, "made somewhere"),
        ],
    )
    def test_an_entry_that_contradicts_itself_is_refused_by_name(self, facts, why):
        with pytest.raises(ValueError, match=f"modality 'odd': .*{why}"):
            Modality(**{"name": "odd", "meaning": "odd", "made": (Made.ENFACE,), **facts})

    @pytest.mark.parametrize("names", [("a_b",), ("aa", "aa")])
    def test_names_that_cannot_be_told_apart_are_refused(self, names):
        entries = [Modality(name=name, meaning="odd", made=(Made.ENFACE,)) for name in names]
        with pytest.raises(ValueError, match=f"modality '{names[0]}'"):
            modalities._table(entries)

    def test_headers_fit_into_a_nifti_file(self):
        for entry in MODALITIES.values():
            assert max(map(len, (entry.tile_header, entry.mosaic_header, entry.slice_header))) < 80


class TestWhatOthersTakeFromIt:
    def test_every_kind_is_halved_and_resampled(self):
        from opticstream.compute.pyramid import halved
        from opticstream.compute.registration import PlanarTransform, resampled

        image = np.arange(12.0).reshape(4, 3)
        for kind, rules in KINDS.items():
            values = np.stack([image, image, image], -1) / 20 if kind == "vector" else image
            block = values[:, :, None]
            assert halved(block, (2, 1, 1), kind=kind).shape[:3] == (2, 3, 1)
            moved = resampled(values, PlanarTransform.identity(), how=rules.resampling, shape=(4, 3))
            assert moved.shape == values.shape
            np.testing.assert_allclose(moved, values, atol=1e-5)

    @pytest.mark.parametrize(
        ("blend", "pair", "one"),
        [
            ("mean", [80.0, -80.0], 0.0),
            ("mean axis", [80.0, -80.0], 90.0),
            ("main direction", [[0.6, 0.8, 0.0], [-0.6, -0.8, 0.0]], [0.6, 0.8, 0.0]),
            ("first", [3, 4], 3),
        ],
    )
    def test_each_blend_is_what_its_name_says(self, blend, pair, one):
        from opticstream.compute.pyramid import halved

        (kind,) = (kind for kind, rules in KINDS.items() if rules.blend == blend)
        assert halved(np.array(pair)[:, None, None], (2, 1, 1), kind=kind)[0, 0, 0] == pytest.approx(one)

    def test_overlaps_of_tiles_blend_by_the_same_rule(self):
        from opticstream.compute.stitching import MosaicSum, canvas_from_positions

        canvas = canvas_from_positions([(0, 0), (0, 0)], tile_shape=(1, 2))
        for kind, expected in (("scalar", 0.0), ("axial", 90.0)):
            assert KINDS[kind].tiles_blend
            total = MosaicSum(canvas, kind)
            for index, value in enumerate((80.0, -80.0)):
                total.add(index, np.array([[value, value / 2]], np.float32), np.ones((1, 2), np.float32))
            assert total.image()[0, 0] == pytest.approx(expected, abs=1e-4)
        assert {kind for kind, rules in KINDS.items() if rules.tiles_blend} == {"scalar", "axial"}

    def test_every_colour_is_drawn(self):
        from opticstream.io.pictures import picture_of_map

        image = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
        for name, entry in MODALITIES.items():
            if entry.has_pictures:
                values = np.stack([image, image, image], -1) if entry.kind == "vector" else image
                assert picture_of_map(name, values).shape == (3, 4, 3)

    def test_every_en_face_map_but_the_surface_has_a_maker(self):
        from opticstream.stages.tile import MAKERS

        assert {*MAKERS, modalities.SURFACE} == set(modalities.enface_names())

    def test_a_maker_needs_an_entry_and_stands_alone(self):
        from opticstream.stages.tile import makes

        with pytest.raises(ValueError, match="'nonsense' is not an en face map"):
            makes("nonsense")
        with pytest.raises(ValueError, match="the map 'aip' is made by average_intensity already"):
            makes("aip")


def settings_of(kind: type[BaseModel]):
    """Yield (settings class, key, field) of all settings."""
    for name, field in kind.model_fields.items():
        yield kind, name, field
        for model in models_in(field.annotation):
            yield from settings_of(model)


def marks_of(annotation, metadata=()):
    yield from (mark for mark in metadata if isinstance(mark, OneOf))
    yield from (mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, OneOf))
    for inner in typing.get_args(annotation):
        yield from marks_of(inner)


class TestSettings:
    FIELDS = tuple((k, n, f, m) for k, n, f in settings_of(ProjectConfig) for m in marks_of(f.annotation, f.metadata))

    def test_every_modality_that_a_setting_accepts_is_in_the_table(self):
        assert len(self.FIELDS) >= 6
        for kind, key, _field, mark in self.FIELDS:
            assert set(mark.choices()) - {""} <= set(MODALITIES), f"{kind.__name__}.{key}"

    def test_no_setting_lists_modalities_of_its_own(self):
        for kind, key, field in settings_of(ProjectConfig):
            listed = {v for v in literals_of(field.annotation) if isinstance(v, str)} & set(MODALITIES)
            # "complex" is a raw format, too, and "axis" a stage of an engine.
            assert not listed - {"complex", "axis"}, f"{kind.__name__}.{key} lists {listed}"

    def test_defaults_are_in_the_table(self):
        for _kind, key, field, mark in self.FIELDS:
            default = field.get_default(call_default_factory=True)
            for name in (default,) if isinstance(default, str) else default:
                assert name in mark.choices(), key

    def test_other_names_are_refused_with_those_that_are_meant(self):
        for kind, key, field, mark in self.FIELDS:
            is_list = typing.get_origin(field.annotation) is tuple
            with pytest.raises(ValidationError, match=f"Input should be .*{mark.choices()[0]}"):
                kind.model_validate({key: ["nonsense"] if is_list else "nonsense"})

    def test_what_the_sample_stacks_by_default_is_in_the_table(self):
        """These lists are free text: they choose among the files that a slice has."""
        from opticstream.config.processing import SampleSettings

        sample = SampleSettings()
        assert {*sample.modalities, sample.align_on} <= set(modalities.mosaic_names())
        assert set(sample.products) == set(modalities.slice_names())


def literals_of(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    for inner in typing.get_args(annotation):
        yield from literals_of(inner)


def listed_names(node: ast.expr) -> list[str]:
    """Names in a literal list, set, tuple or dict, or in a call such as `frozenset({...})` or `Literal[...]`."""
    match node:
        case ast.Dict(keys=keys):
            parts = [key for key in keys if key is not None]
        case ast.Set(elts=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            pass
        case ast.Call(args=[inner, *_]) | ast.Subscript(slice=inner):
            return listed_names(inner)
        case _:
            return []
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
class TestThereIsNoOther:
    def test_no_module_has_a_table_of_modalities_of_its_own(self, module):
        """A module's own list or table with three modalities or more, that are at least half of its names."""
        if module == SOURCE / "model" / "modalities.py":
            return
        for statement in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                names = listed_names(statement.value)
                known = [name for name in names if name in MODALITIES]
                assert len(known) < 3 or 2 * len(known) < len(names), (
                    f"line {statement.lineno} lists {known}: take them from opticstream.model.modalities"
                )

    def test_no_behaviour_hangs_on_the_name_of_a_modality(self, module):
        """`modality == "ori"` and the like: what is meant is a fact of the table."""
        maps = set(modalities.names(Made.ENFACE, Made.VOLUME)) | {
            "surfraw"
        }  # other names are also words for other things
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            for operator, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(operator, ast.Eq | ast.NotEq):
                    names = [s.value for s in (node.left, right) if isinstance(s, ast.Constant)]
                elif isinstance(operator, ast.In | ast.NotIn):
                    names = listed_names(right)
                else:
                    continue
                known = {name for name in names if isinstance(name, str)} & maps
                assert not known, f"line {node.lineno} compares with {sorted(known)}"
