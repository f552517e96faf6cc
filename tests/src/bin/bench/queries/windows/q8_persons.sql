-- Nexmark 8, new users, the first of its two windows: those who came.
SELECT
    payload->>'id' AS id,
    payload->>'name' AS name,
    window_start AS start
FROM persons
