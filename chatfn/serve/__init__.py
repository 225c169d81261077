"""A handler as a server that speaks OpenAI's API.

``app`` is a WSGI application, for any WSGI server; ``serve`` and ``served`` run it; ``gateway`` is the handler that
answers by a call of its own, with given options.
"""

from chatfn.serve.application import app
from chatfn.serve.running import gateway, serve, served

__all__ = ["app", "gateway", "serve", "served"]
