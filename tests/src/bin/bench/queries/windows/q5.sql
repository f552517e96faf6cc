-- Nexmark 5, hot items: the auctions with the most bids, more than one if they have as many.
WITH counts AS (
    SELECT
        payload->>'auction' AS auction,
        count(*) AS num
    FROM bids
    GROUP BY 1
)
SELECT auction, num
FROM counts
WHERE num = (SELECT max(num) FROM counts)
