-- Nexmark 9, winning bids: each auction with its highest bid, the earliest of equals. The bid's key decides where
-- even the time is the same.
SELECT
    id, item_name, description, initial_bid, reserve, date_time, expires, seller, category, extra,
    auction, bidder, price, bid_date_time, bid_extra
FROM (
    SELECT
        a.key AS id,
        a.payload->>'item_name' AS item_name,
        a.payload->>'description' AS description,
        a.payload->>'initial_bid' AS initial_bid,
        a.payload->>'reserve' AS reserve,
        a.payload->>'date_time' AS date_time,
        a.payload->>'expires' AS expires,
        a.payload->>'seller' AS seller,
        a.payload->>'category' AS category,
        a.payload->>'extra' AS extra,
        b.payload->>'auction' AS auction,
        b.payload->>'bidder' AS bidder,
        b.payload->>'price' AS price,
        b.payload->>'date_time' AS bid_date_time,
        b.payload->>'extra' AS bid_extra,
        row_number() OVER (
            PARTITION BY a.key
            ORDER BY b.payload->>'price' DESC, b.payload->>'date_time', b.key
        ) AS rank
    FROM auctions a
    JOIN bids b ON a.key = b.payload->>'auction'
    WHERE b.payload->>'date_time' BETWEEN a.payload->>'date_time' AND a.payload->>'expires'
)
WHERE rank = 1
