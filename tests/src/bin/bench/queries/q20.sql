-- Nexmark 20, expanded bids: each bid on an auction of category 10, with that auction.
SELECT
    b.key AS id,
    b.payload->>'auction' AS auction,
    b.payload->>'bidder' AS bidder,
    b.payload->>'price' AS price,
    b.payload->>'channel' AS channel,
    b.payload->>'url' AS url,
    b.payload->>'date_time' AS bid_date_time,
    b.payload->>'extra' AS bid_extra,
    a.payload->>'item_name' AS item_name,
    a.payload->>'description' AS description,
    a.payload->>'initial_bid' AS initial_bid,
    a.payload->>'reserve' AS reserve,
    a.payload->>'date_time' AS date_time,
    a.payload->>'expires' AS expires,
    a.payload->>'seller' AS seller,
    a.payload->>'category' AS category,
    a.payload->>'extra' AS extra
FROM bids b
JOIN auctions a ON a.key = b.payload->>'auction'
WHERE a.payload->>'category' = 10
