# Runs localstripe on loopback alone, keeping nothing on disk: its own command listens on every interface, and writes all it
# knows to one file in /tmp after every request. What it lacks of subscriptions' lives is added here.
import sys
from collections import defaultdict

from aiohttp import web
from localstripe import resources
from localstripe.errors import UserError
from localstripe.resources import Event, Invoice, List, Store, StripeObject, Subscription, store
from localstripe.server import app, json_response

# Its own listing goes through all objects of every kind, once more for each customer listed: 10 s at 800 customers, in which
# nobody else is answered.
of_kind = defaultdict(dict)


def keep(self, key, value):
    dict.__setitem__(self, key, value)
    of_kind[key.partition(":")[0]][key] = value


def drop(self, key):
    dict.__delitem__(self, key)
    del of_kind[key.partition(":")[0]][key]


def list_all(cls, url, limit=None, starting_after=None, **unknown):
    if unknown:
        raise UserError(400, "Unexpected " + ", ".join(unknown))
    listed = List(url, limit=limit, starting_after=starting_after)
    listed._list = list(of_kind[cls.object].values())
    return listed


for key, value in store.items():
    of_kind[key.partition(":")[0]][key] = value
Store.__setitem__, Store.__delitem__ = keep, drop
StripeObject._api_list_all = classmethod(list_all)
store.dump_to_disk = lambda: None

Subscription.cancellation_details = {"comment": None, "feedback": None, "reason": None}
cancel, send = Subscription._api_delete, resources.schedule_webhook


def cancel_with_reason(cls, id):
    # As Stripe has it for every cancellation that somebody asks for.
    details = dict(cls.cancellation_details, reason="cancellation_requested")
    cls._api_retrieve(id).cancellation_details = details
    return cancel(id)


def schedule(event):
    about = event.data["object"]
    if event.type.startswith("invoice."):
        subscription = store.get("subscription:%s" % about.get("subscription"))
        # Most sign-ups are sent their first invoice, which is paid much later at Stripe, and charged at once here.
        if subscription is not None and subscription.status == "incomplete":
            return
    send(event)
    if event.type == "invoice.payment_succeeded":
        send(Event("invoice.paid", Invoice._api_retrieve(about["id"])))


async def play(request):
    """What happens at Stripe without being asked for: {"becomes": {attribute: value, ...}, "events": [type, ...]}."""
    subscription = Subscription._api_retrieve(request.match_info["id"])
    played = await request.json()
    for name, value in played["becomes"].items():
        setattr(subscription, name, value)
    for kind in played["events"]:
        of_invoice = kind.startswith("invoice.")
        about = Invoice._api_retrieve(subscription.latest_invoice) if of_invoice else subscription
        send(Event(kind, about))
    return json_response(subscription._export())


Subscription._api_delete = classmethod(cancel_with_reason)
resources.schedule_webhook = schedule
app.router.add_post("/_local/subscriptions/{id}", play)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
