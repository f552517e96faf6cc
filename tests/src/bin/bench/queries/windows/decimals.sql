-- What each customer has ordered, as count and sum. The sum is rounded to cents, so that the order in which it was
-- added up plays no part.
SELECT
    payload->>'customer_id' AS customer,
    count(*) AS orders,
    round(sum(payload->>'amount'), 2) AS total
FROM orders
GROUP BY 1
