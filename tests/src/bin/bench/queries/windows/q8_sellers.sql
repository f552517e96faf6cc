-- Nexmark 8, new users, the second of its two windows: those who sell.
SELECT DISTINCT
    payload->>'seller' AS seller,
    window_start AS start
FROM auctions
