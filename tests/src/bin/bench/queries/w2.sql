-- What each customer has ordered, with the customer's name. The sum is rounded to cents, so that the order in which
-- it was added up plays no part.
SELECT
    c.key AS customer,
    c.payload->>'name' AS name,
    count(*) AS orders,
    round(sum(o.payload->>'amount'), 2) AS total
FROM orders o
JOIN customers c ON c.key = o.payload->>'customer_id'
GROUP BY c.key
