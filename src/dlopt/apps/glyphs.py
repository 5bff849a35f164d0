"""A Chinese font for machines that have none, so that pages do not show boxes there.

A browser asks for it only where its own fonts lack a character. It is a file of the Python package mplfonts (extra
`report`), or of the system; where neither is found the pages use what the browser has.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from dlopt.lab import fonts

PATH = "/font.otf"
# a day: the file is large (16 MB), and `Bounded` leaves a header alone that is there
HEADERS = {"Cache-Control": "max-age=86400", "Cross-Origin-Resource-Policy": "same-origin"}
router = APIRouter()


@router.get(PATH, response_class=FileResponse)
def font() -> FileResponse:
    """The font file, or 404. Collections (.ttc) are the system's own, which browsers find by themselves."""
    try:
        file = fonts.find(fonts.SANS)
    except fonts.FontUnavailable as error:
        raise HTTPException(404) from error
    if file.suffix != ".otf":
        raise HTTPException(404)
    return FileResponse(file, media_type="font/otf", headers=HEADERS)
