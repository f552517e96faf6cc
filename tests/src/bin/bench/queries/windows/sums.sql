-- What each customer has ordered, as count and sum.
SELECT
    payload->>'customer_id' AS customer,
    count(*) AS orders,
    sum(payload->>'cents') AS cents
FROM orders
GROUP BY 1
