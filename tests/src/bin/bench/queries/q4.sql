-- Nexmark 4, average price: of the winning bids, for each category.
SELECT
    category,
    avg(final) AS average
FROM (
    SELECT
        a.payload->>'category' AS category,
        max(b.payload->>'price') AS final
    FROM auctions a
    JOIN bids b ON a.key = b.payload->>'auction'
    WHERE b.payload->>'date_time' BETWEEN a.payload->>'date_time' AND a.payload->>'expires'
    GROUP BY a.key
)
GROUP BY category
