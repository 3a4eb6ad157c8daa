# Runs localstripe on loopback alone, keeping nothing on disk: its own command listens on every interface, and writes all it
# knows to one file in /tmp after every request.
import sys

from aiohttp import web
from localstripe.resources import store
from localstripe.server import app

store.dump_to_disk = lambda: None
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
