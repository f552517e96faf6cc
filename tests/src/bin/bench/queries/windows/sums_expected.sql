-- The frames of a minute with what each customer has ordered in them.
SELECT
    json_array(strftime('%Y-%m-%dT%H:%M:%SZ', start, 'unixepoch'), customer) AS result_key,
    customer, orders, cents
FROM (
    SELECT
        unixepoch(payload->>'at') / 60 * 60 AS start,
        payload->>'customer_id' AS customer,
        count(*) AS orders,
        sum(payload->>'cents') AS cents
    FROM orders
    GROUP BY 1, 2
)
