/* What the mutation's own test changes; nothing runs it. In comments nothing is: if (a < 1) b = 2; */
#include "sample.h"

#define LIMIT 5
#define ALL_OF(column) " WHERE " column " = 1 AND state = 'q'"
#define TWICE(x) ((x) + (x))

static const struct {int code; const char *text;} table[] = {
	{1, "one"},
	{2, "two, if (x < 3)"},
};

static const char *const query =
	"SELECT * FROM t WHERE a = $1 AND (b BETWEEN 1 AND 2 OR c)"
	" AND NOT EXISTS (SELECT FROM u WHERE u.id = t.id) ORDER BY d";

#if 0
static int	never = 1;
#endif

int
count(int *numbers, int num, bool loud)
{
	int			sum = 0;
	unsigned	flags = 0;

	for (int i = 0; i < num; i++)
	{
		if (numbers[i] > LIMIT && loud)
			note("large: %d",
				 numbers[i]);
		else if (TWICE(numbers[i] == 0x10))
			flags |= 1;
		sum += look(numbers[i]);
	}
	while (sum > 100)
		sum--;
	do
	{
		(void) look(table[0].code);
	} while (!loud);
	return flags ? sum : -1;
}
