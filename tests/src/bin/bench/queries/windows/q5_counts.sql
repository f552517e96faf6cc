-- The counts of Nexmark 5: the bids on each auction.
SELECT
    payload->>'auction' AS auction,
    count(*) AS num
FROM bids
GROUP BY 1
