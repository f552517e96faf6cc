-- Nexmark 3, local item suggestion: who sells in category 10 in three states.
SELECT
    a.key AS id,
    p.payload->>'name' AS name,
    p.payload->>'city' AS city,
    p.payload->>'state' AS state
FROM auctions a
JOIN persons p ON p.key = a.payload->>'seller'
WHERE a.payload->>'category' = 10
  AND p.payload->>'state' IN ('or', 'id', 'ca')
