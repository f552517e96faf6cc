-- The sessions of each customer: orders of which each is at most 30 s behind the one before.
WITH placed AS (
    SELECT
        payload->>'customer_id' AS customer,
        unixepoch(payload->>'at') AS at,
        payload->>'cents' AS cents
    FROM orders
),
marked AS (
    SELECT *, at - lag(at, 1, 0) OVER (PARTITION BY customer ORDER BY at) > 30 AS is_first FROM placed
),
numbered AS (
    SELECT *, sum(is_first) OVER (PARTITION BY customer ORDER BY at ROWS UNBOUNDED PRECEDING) AS number FROM marked
)
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', min(at), 'unixepoch'), customer) AS result_key,
    customer,
    count(*) AS orders,
    sum(cents) AS cents
FROM numbered
GROUP BY customer, number
