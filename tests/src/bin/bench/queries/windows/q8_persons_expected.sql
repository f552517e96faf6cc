-- Persons with the ten seconds in which they came.
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', start, 'unixepoch'), id) AS result_key,
    id, name, start
FROM (
    SELECT
        payload->>'id' AS id,
        payload->>'name' AS name,
        payload->>'date_time' / 10000 * 10 AS start
    FROM persons
)
