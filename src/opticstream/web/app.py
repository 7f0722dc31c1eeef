"""The dashboard's pages, pictures and stream of changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, quote, unquote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.responses import FileResponse

from opticstream.model.errors import InputError, OpticStreamError
from opticstream.model.ids import ItemId, MosaicId, SampleId, SliceId, item_from_key
from opticstream.model.modalities import MODALITIES, Modality, described
from opticstream.pipeline.judging import judged
from opticstream.pipeline.project import Project
from opticstream.web.access import Access
from opticstream.web.board import Board
from opticstream.web.files import PICTURES, STORE, output_path, picture_path, store_path, strip_of_pipeline
from opticstream.web.guard import Guard
from opticstream.web.listening import Retry
from opticstream.web.tiles import at_first_look, stamp_of
from opticstream.web.viewer import CLIENT, DECODERS, SCRIPTS, STYLE
from opticstream.web.views import Views, modalities_of

if TYPE_CHECKING:
    from opticstream.web.thumbnails import Thumbnails, ZoomFiles

LOOK_EVERY_S = 0.5
READ_ON_EVERY_S = 0.15
"""Pause between the steps of the first look at all facts, in which pages are answered."""
FIRST_LOOK_S = 1.0
"""Time for which the first page waits for the current slice, before it is shown without it."""
BEAT_S = 10.0
"""Time after which a page hears something although nothing has changed, so that it knows that it is not cut off."""
_COMPACT = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/octet-stream")
"""Kinds of content that are not compressed again."""
_FOREVER = "private, max-age=31536000, immutable"
_PART_OF_ZOOM = re.compile(r"(?P<modality>[A-Za-z0-9]+)(?:\.dzi|_files/\d{1,2}/\d{1,4}_\d{1,4}\.jpg)")
_MOST_FORM_BYTES = 10_000

_log = logging.getLogger(__name__)

Number = Annotated[int, Field(ge=1, le=999_999)]


@dataclass(frozen=True)
class ShownPicture:
    """A picture of an item."""

    name: str
    title: str
    file: str
    """Name as in records, ready for an address."""
    modality: Modality | None = None


class Dashboard:
    """A board, kept up to date while the application runs, and what is made from it."""

    def __init__(self, project: Project, access: Access, retry: Retry | None, /) -> None:
        self.project = project
        self.access = access
        self.retry = retry if access.token is not None else None
        self.board = Board(project)
        self.views = Views(self.board, may_retry=self.retry is not None)
        self.changed = asyncio.Condition()
        self.looked = threading.Event()
        """Whether the current slice was read, or could not be read."""
        self.closing = False

    def wait_for_facts(self, slice_id: SliceId | None) -> None:
        """Wait until the slice that is shown was read, but not for ever."""
        end = time.monotonic() + FIRST_LOOK_S
        self.looked.wait(FIRST_LOOK_S)
        while slice_id is not None and not self.board.read_first(slice_id) and time.monotonic() < end:
            time.sleep(0.01)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """Pictures that the pipeline did not make."""
        from opticstream.web.thumbnails import Thumbnails  # loads what computes

        return Thumbnails(self.project)

    @cached_property
    def zooms(self) -> ZoomFiles:
        """Pictures at full size that are being looked at."""
        from opticstream.web.thumbnails import ZoomFiles

        return ZoomFiles()

    async def close(self) -> None:
        """End all streams, so that the server need not cut them off."""
        self.closing = True
        async with self.changed:
            self.changed.notify_all()

    def render(self, template: str, **values: Any) -> str:
        """Return a page."""
        common = {"project_name": self.project.config.name, "signed_in": self.access.token is not None}
        return self.views.environment.get_template(template).render(common | values)

    async def keep_up(self) -> None:
        """Look for changes until cancelled. If the facts cannot be read, the page says so, and they are tried again."""
        while True:
            try:
                changed = await asyncio.to_thread(self.board.refresh)
                changed |= self.board.note_problem("")
            except Exception as error:
                changed = self.board.note_problem(f"{type(error).__name__}: {error}")
                if changed:
                    _log.warning("the facts of %s cannot be read", self.project.config.name, exc_info=error)
            if not self.looked.is_set():
                self.looked.set()
                with contextlib.suppress(Exception):  # who opens the page sees what is wrong
                    await asyncio.to_thread(self._render_ahead)
            if changed:
                async with self.changed:
                    self.changed.notify_all()
            await asyncio.sleep(LOOK_EVERY_S if self.board.reading is None else READ_ON_EVERY_S)

    def _render_ahead(self) -> None:
        """Render the page that is opened first, so that it is there when it is asked for."""
        if modalities := modalities_of(self.board):
            self.views.get(None, modalities[0]).parts()


def create_app(project: Project, /, *, access: Access | None = None, retry: Retry | None = None) -> FastAPI:
    """Return the application of a project's dashboard.

    Parameters
    ----------
    project : Project
        The project; only read, except by `retry`.
    access : Access, optional
        Who may use it: this host alone, read-only, by default.
    retry : callable, optional
        Does a retry; offered only with a token.
    """
    access = access or Access()
    dashboard = Dashboard(project, access, retry)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(dashboard.keep_up())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.dashboard = dashboard
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")), name="static")
    _add_pages(app, dashboard)
    _add_pictures(app, dashboard)
    _add_volumes(app, dashboard)
    _add_actions(app, dashboard)
    _add_problems(app, dashboard)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5, exclude_content_types=_COMPACT)
    app.add_middleware(Guard, access=access, decoders=DECODERS)
    return app


def _add_pages(app: FastAPI, dashboard: Dashboard) -> None:
    board, views = dashboard.board, dashboard.views

    def chosen(slice_text: str, modality: str) -> tuple[SliceId | None, str]:
        known = modalities_of(board)
        if not known:
            raise HTTPException(404, "this project makes no en face maps")
        if slice_text and not (slice_text.isdecimal() and 1 <= int(slice_text) <= 999_999):
            raise HTTPException(404, f"slice {slice_text!r} is not a number")
        return (SliceId(int(slice_text)) if slice_text else None), modality if modality in known else known[0]

    @app.get("/", response_class=HTMLResponse)
    def index(slice: str = "", modality: str = "") -> str:
        slice_id, name = chosen(slice, modality)
        dashboard.wait_for_facts(slice_id)
        view = views.get(slice_id, name)
        version = board.version
        return dashboard.render(
            "index.html.j2",
            parts=view.parts(),
            event_id=views.event_id(version),
            slice_number=slice_id.slice_id if slice_id else "",
            modality=name,
        )

    @app.get("/events", response_class=EventSourceResponse)
    async def events(
        request: Request, since: str = "", slice: str = "", modality: str = ""
    ) -> AsyncIterator[ServerSentEvent]:
        view = views.get(*chosen(slice, modality))
        seen = views.version_seen(request.headers.get("last-event-id") or since)
        while not dashboard.closing:
            if seen != board.version:
                html, version = await asyncio.to_thread(view.since, seen)
                seen = version
                if html:
                    yield ServerSentEvent(raw_data=html, id=views.event_id(version))
            async with dashboard.changed:
                with contextlib.suppress(TimeoutError):
                    if seen == board.version and not dashboard.closing:
                        await asyncio.wait_for(dashboard.changed.wait(), BEAT_S)
                        continue
            if seen == board.version:
                yield ServerSentEvent(event="beat", raw_data="")

    @app.get("/tile/{mosaic}/{tile}", response_class=HTMLResponse)
    def tile(request: Request, mosaic: Number, tile: Number) -> str:
        dashboard.wait_for_facts(dashboard.project.layout.slice_of(MosaicId(mosaic)))
        look = board.look(MosaicId(mosaic), tile)
        if look is None:
            raise HTTPException(404, f"mosaic {mosaic} has no tile {tile}")
        pictures = _pictures_of_record(dashboard.project, look.tile, "processed")
        first = None
        if not pictures:
            look, first = at_first_look(dashboard.project, look)
        partial = request.headers.get("hx-request") == "true"
        return dashboard.render(
            "tile.html.j2" if partial else "tile_page.html.j2",
            look=look,
            slice_id=dashboard.project.layout.slice_of(look.tile.mosaic).slice_id,
            picture=pictures[0].file if pictures else first,
            is_first_look=first is not None,
        )

    @app.get("/pictures/{key}", response_class=HTMLResponse)
    def pictures(key: str, show: str = "") -> str:
        item = _item(key)
        found, lines, stamp = _pictures_of(dashboard.project, item)
        shown = next((one for one in found if one.name == show), found[0] if found else None)
        slice_id = item if isinstance(item, SliceId) else None
        if isinstance(item, MosaicId):
            slice_id = dashboard.project.layout.slice_of(item)
        return dashboard.render(
            "pictures.html.j2",
            item=item, pictures=found, shown=shown, lines=lines, stamp=stamp,
            slice_id=slice_id.slice_id if slice_id else None,
            zoom=_zoom_of(dashboard.project, item, shown, stamp),
            has_volumes=_has_volumes(dashboard.project, item),
        )  # fmt: skip


def _item(key: str) -> ItemId:
    try:
        return item_from_key(key)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


def _pictures_of(project: Project, item: ItemId) -> tuple[list[ShownPicture], list[tuple[str, str]], int]:
    """Return the pictures of an item, lines about it, and a number that changes with them."""
    fact = {"mosaic": "stitched", "slice": "registered"}.get(item.hierarchy)
    if isinstance(item, SampleId):
        path = project.paths.sample_preview
        found = [_shown(path.name, project.paths.relative(path))] if path.is_file() else []
        return found, [], path.stat().st_mtime_ns if found else 0
    if fact is None:
        raise HTTPException(404, f"{item} has no pictures")
    path = project.facts.path(item, fact)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    record = project.facts.read_whole(item, fact)
    lines = [("look", f"△ {reason}") for reason in judged(project, item, record.detail).reasons] if record else []
    if record is None:
        lines.append(("dim", f"{item} is not {fact} yet"))
    return _pictures_of_record(project, item, fact), lines, stamp


def _pictures_of_record(project: Project, item: ItemId, fact: str) -> list[ShownPicture]:
    record = project.facts.read_whole(item, fact)
    if record is None:
        return []
    names = dict.fromkeys(
        [file.path for file in record.outputs]
        + [str(path) for path in (record.detail.get("products") or {}).values()]
        + [str(path) for path in (record.detail.get("pictures") or ())]
    )
    pictures = [_shown(Path(name).name, name) for name in names if Path(name).suffix.lower() in PICTURES]
    order = list(MODALITIES)
    return sorted(pictures, key=lambda one: order.index(one.modality.name) if one.modality else len(order))


def _has_volumes(project: Project, item: ItemId) -> bool:
    if isinstance(item, SampleId):
        record = project.facts.read_whole(item, "updated")
        return record is not None and any(file.path.endswith(STORE) for file in record.outputs)
    return isinstance(item, MosaicId) and project.facts.has(item, "volume_stitched")


def _zoom_of(project: Project, item: ItemId, shown: ShownPicture | None, stamp: int) -> str:
    """Return the address of a picture at full size; empty if there is none, because the picture itself is."""
    if not isinstance(item, MosaicId) or shown is None or shown.modality is None:
        return ""
    name = shown.modality.name
    return f"/zoom/{stamp}/{item.mosaic_id}/{name}.dzi" if project.paths.mosaic_zoom(item, name).exists() else ""


def _shown(name: str, file: str) -> ShownPicture:
    stem = Path(name).stem
    title = stem.split("_", 2)[-1] if stem.startswith(("mosaic_", "slice_")) else stem
    modality = MODALITIES.get(title)
    words = modality.meaning if modality else title.replace("_", " ").replace("qc ", "quality: ")
    return ShownPicture(name, words, quote(file, safe="/:"), modality)


def _add_pictures(app: FastAPI, dashboard: Dashboard) -> None:
    project, board = dashboard.project, dashboard.board

    @app.get("/strip/{mosaic}/{column}/{modality}.jpg")
    def strip(mosaic: Number, column: Number, modality: str, v: str = "") -> Response:
        if modality not in modalities_of(board):
            raise HTTPException(404, f"this project has no map {modality!r}")
        try:
            dashboard.wait_for_facts(project.layout.slice_of(MosaicId(mosaic)))
            looks = board.looks(MosaicId(mosaic), column - 1)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        # What was asked for may be another picture than the present one: of before, or not read again after a restart.
        made = strip_of_pipeline(project, looks, modality)
        content = dashboard.thumbnails.strip(looks, modality) if made is None else made
        return _picture(content, keep=v == stamp_of(looks))

    @app.get("/preview/{mosaic}.jpg")
    def preview(mosaic: Number) -> Response:
        item = MosaicId(mosaic)
        for name in sorted(modalities_of(board), key=lambda one: not described(one).intensity):
            with contextlib.suppress(InputError, OSError):
                thumbnail = project.paths.relative(project.paths.mosaic_thumbnail(item, name))
                return _picture(picture_path(project.paths, thumbnail).read_bytes())
        found = _pictures_of_record(project, item, "stitched")
        if not found:
            raise HTTPException(404, f"{item} has no picture")
        names = [one for one in found if one.modality and one.modality.intensity] or found
        return _picture(dashboard.thumbnails.preview(picture_path(project.paths, unquote(names[0].file))))

    @app.get("/zoom/{stamp}/{mosaic}/{part:path}")
    def zoom(stamp: int, mosaic: Number, part: str) -> Response:
        """A part of a stitched map at full size; the stamp tells browsers when it is another one."""
        found = _PART_OF_ZOOM.fullmatch(part)
        if found is None:
            raise HTTPException(404, f"{part!r} is not a part of a picture")
        path = project.paths.mosaic_zoom(MosaicId(mosaic), found["modality"])
        real = output_path(project.paths, project.paths.relative(path))
        content = dashboard.zooms.read(real, f"{path.stem}{part[len(found['modality']) :]}")
        kind = "application/xml" if part.endswith(".dzi") else "image/jpeg"
        return Response(content, media_type=kind, headers={"Cache-Control": _FOREVER})

    @app.get("/files/{name:path}")
    def files(name: str) -> FileResponse:
        return FileResponse(picture_path(project.paths, name), headers={"Cache-Control": "private, max-age=60"})

    @app.get("/legend/wheel.png")
    def legend() -> Response:
        return Response(_wheel(), media_type="image/png", headers={"Cache-Control": _FOREVER})


@cache
def _wheel() -> bytes:
    from opticstream.io.encoded_pictures import encoded_picture
    from opticstream.io.orientation_pictures import inplane_legend

    return encoded_picture(inplane_legend(288), "PNG")


def _add_volumes(app: FastAPI, dashboard: Dashboard) -> None:
    project = dashboard.project

    @app.get("/volumes/{key}")
    def volumes(request: Request, key: str) -> RedirectResponse:
        from opticstream.web.volumes import viewer_address, volumes_of  # loads what reads volumes

        item = _with_volumes(key)
        found = volumes_of(project, item)
        if not found:
            raise HTTPException(404, f"{'the ' if isinstance(item, SampleId) else ''}{item} has no volumes, or not yet")
        origin = str(request.base_url).rstrip("/")
        return RedirectResponse(viewer_address(key, found, origin=origin), 303)

    @app.get("/v/{key}/", response_class=HTMLResponse)  # the viewer expects an address of this form
    def viewer(key: str) -> str:
        item = _with_volumes(key)
        axial = isinstance(item, SampleId) or any(
            described(name).is_axial for name in project.config.processing.volume.modalities
        )
        return dashboard.render(
            "volume.html.j2", item=item, client=CLIENT, style=STYLE, scripts=SCRIPTS, axial=axial
        )  # fmt: skip

    @app.get("/events/{key}", response_class=EventSourceResponse)
    async def viewer_events(key: str) -> AsyncIterator[ServerSentEvent]:
        """Nothing: the viewer only wants to see that its server is there."""
        _with_volumes(key)
        while not dashboard.closing:
            async with dashboard.changed:
                await dashboard.changed.wait()
        yield ServerSentEvent(comment="end")

    @app.api_route("/volumes/{stamp}/{name:path}", methods=["GET", "HEAD"])
    def volume_file(stamp: int, name: str) -> Response:
        """A file of a volume; the stamp tells browsers when it is another one."""
        try:
            path = store_path(project.paths, name)
        except InputError:  # parts of a volume that hold no value do not exist
            return Response(status_code=404)
        kind = "application/json" if path.name.startswith((".z", "zarr")) else "application/octet-stream"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": _FOREVER})


def _with_volumes(key: str) -> MosaicId | SampleId:
    item = _item(key)
    if not isinstance(item, MosaicId | SampleId):
        raise HTTPException(404, f"{item} is neither a mosaic nor the sample")
    return item


def _picture(content: bytes, *, keep: bool = True) -> Response:
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": _FOREVER} if keep else None)


def _add_actions(app: FastAPI, dashboard: Dashboard) -> None:
    access = dashboard.access

    @app.get("/login", response_class=HTMLResponse)
    def login_page() -> str:
        return dashboard.render("login.html.j2", wrong=False, project_name="OpticStream")

    @app.post("/login")
    async def login(request: Request) -> Response:
        form = await _form(request)
        if not access.is_token(form.get("token", "")):
            await asyncio.sleep(1.0)  # guessing takes longer
            page = dashboard.render("login.html.j2", wrong=True, project_name="OpticStream")
            return HTMLResponse(page, status_code=403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            access.cookie, access.cookie_value(), httponly=True, samesite="strict", max_age=90 * 86400, path="/"
        )
        return response

    @app.post("/logout")
    def logout() -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(access.cookie, path="/")
        return response

    @app.post("/retry", response_class=HTMLResponse)
    async def retry(request: Request) -> str:
        if dashboard.retry is None:
            raise HTTPException(403, "this dashboard cannot retry")
        key = (await _form(request)).get("item", "")
        items = None if key == "all" else [_item(key)]
        lines = await asyncio.to_thread(dashboard.retry, items)
        escape = dashboard.views.environment.filters["e"]
        return "<br>".join(str(escape(line)) for line in lines) or "nothing is parked as failed"


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            raise HTTPException(413, "too long")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise HTTPException(400, "not a form") from error
    return {name: values[-1] for name, values in fields.items()}


def _add_problems(app: FastAPI, dashboard: Dashboard) -> None:
    def page(title: str, text: str, status: int) -> HTMLResponse:
        return HTMLResponse(dashboard.render("problem.html.j2", title=title, text=text), status_code=status)

    @app.exception_handler(HTTPException)
    async def http_problem(_request: Request, error: HTTPException) -> HTMLResponse:
        return page("Not found" if error.status_code == 404 else "Not possible", str(error.detail), error.status_code)

    @app.exception_handler(InputError)
    async def not_served(_request: Request, error: InputError) -> HTMLResponse:
        return page("Not found", str(error), 404)

    @app.exception_handler(OpticStreamError)
    async def problem(_request: Request, error: OpticStreamError) -> HTMLResponse:
        return page("Not possible", str(error), 409)
