"""The other side of the example: an API to poll and a webhook to post to, on one port of this machine.

GET /observations  the weather of the present hour at each airport; the next hour comes every second
POST /webhook      prints what it is told, after a look at the signature
"""
import csv
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import sys
import time

WEATHER = pathlib.Path(__file__).parent.parent / "flights" / "weather.csv"
TOKEN, KEY = os.environ["WEATHER_TOKEN"], os.environ["WEBHOOK_KEY"]
SECONDS_AN_HOUR = float(os.environ.get("SECONDS_AN_HOUR", "1"))

hours = {}
for row in csv.DictReader(WEATHER.open()):
    wind = None if row["wind_speed"] == "NA" else round(float(row["wind_speed"]), 1)
    observation = {"airport": row["origin"], "hour": row["time_hour"], "wind_mph": wind}
    hours.setdefault(row["time_hour"], []).append(observation)
hours = [hours[hour] for hour in sorted(hours)]
started = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401)
        hour = min(int((time.monotonic() - started) / SECONDS_AN_HOUR), len(hours) - 1)
        tag = f'"{hour}"'
        if self.headers["If-None-Match"] == tag:
            return self.answer(304)
        self.answer(200, json.dumps({"observations": hours[hour]}), {"ETag": tag})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signature = "sha256=" + hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature, self.headers["LiteJoin-Signature"] or ""):
            return self.answer(403)
        result = json.loads(body)
        for row in result["rows"]:
            print(f"{row['hour']} {row['airport']}: {row['wind_mph']} mph, more than {row['limit_mph']}", flush=True)
        if result["op"] == "deleted":
            print(f"{result['key']}: calm again", flush=True)
        self.answer(204)

    def answer(self, status, body="", headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
