"""The dashboard: a page that an operator leaves open, which shows a project live and can retry what has failed.

Reads facts and pictures, renders, and asks `pipeline` to retry; no rule lives here.
"""

from opticstream.web.access import Access, token_from_file
from opticstream.web.listening import Retry
from opticstream.web.serving import serve_dashboard

__all__ = ["Access", "Retry", "serve_dashboard", "token_from_file"]
