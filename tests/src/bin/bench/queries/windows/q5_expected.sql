-- The frames of ten seconds, every two seconds, with the auctions that have the most bids.
WITH counts AS (
    SELECT
        payload->>'date_time' / 2000 * 2 - column1 AS start,
        payload->>'auction' AS auction,
        count(*) AS num
    FROM bids CROSS JOIN (VALUES (0), (2), (4), (6), (8))
    GROUP BY 1, 2
),
ranked AS (
    SELECT *, max(num) OVER (PARTITION BY start) AS most FROM counts
)
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', start, 'unixepoch'), auction) AS result_key,
    auction, num
FROM ranked
WHERE num = most
