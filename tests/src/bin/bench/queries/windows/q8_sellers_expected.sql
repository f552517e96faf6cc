-- Sellers with each ten seconds in which an auction of theirs began.
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', start, 'unixepoch'), seller) AS result_key,
    seller, start
FROM (
    SELECT DISTINCT
        payload->>'seller' AS seller,
        payload->>'date_time' / 10000 * 10 AS start
    FROM auctions
)
