-- The frames of ten minutes, every ten seconds, with what each customer has ordered in them: sums of 60 panes.
WITH RECURSIVE
panes AS MATERIALIZED (
    SELECT
        payload->>'customer_id' AS customer,
        unixepoch(payload->>'at') / 10 * 10 AS start,
        count(*) AS orders,
        sum(payload->>'cents') AS cents
    FROM orders
    GROUP BY 1, 2
),
starts(start) AS (
    SELECT min(start) - 590 FROM panes
    UNION ALL
    SELECT start + 10 FROM starts WHERE start < (SELECT max(start) FROM panes)
),
customers AS MATERIALIZED (SELECT DISTINCT customer FROM panes),
frames AS (
    SELECT
        customers.customer,
        starts.start,
        sum(panes.orders) OVER frame AS orders,
        sum(panes.cents) OVER frame AS cents
    FROM customers CROSS JOIN starts
    LEFT JOIN panes ON panes.customer = customers.customer AND panes.start = starts.start
    WINDOW frame AS (
        PARTITION BY customers.customer ORDER BY starts.start ROWS BETWEEN CURRENT ROW AND 59 FOLLOWING
    )
)
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', start, 'unixepoch'), customer) AS result_key,
    customer, orders, cents
FROM frames
WHERE orders > 0
