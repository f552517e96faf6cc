-- Orders with the name of their customer, joined on a field that is no key.
SELECT
    o.key AS id,
    o.payload->>'amount' AS amount,
    c.payload->>'name' AS name
FROM orders o
JOIN customers c ON c.key = o.payload->>'customer_id'
