# Rate over queue length. script/bench sets plot_file, terminal_name (svg or png) and dir.
# white, for pages that are shown on black
set terminal terminal_name size 720, 400 background "#ffffff"
set output plot_file
set title "Flows dispatched, ends recorded durably"
set logscale x 10
set autoscale xfixmin
set xlabel "flows queued"
set ylabel "per second"
set yrange [0:*]
set format x "%.0s%c"
set format y "%.0s%c"
set grid
set key below horizontal maxcols 2 width -4 samplen 2
plot dir."/feishu.plot" using 1:3 with lines dashtype 2 lc 1 title "HTTP/1.1, libcurl multi loop", \
	"" using 1:2 with linespoints lc 1 lw 2 title "HTTP/1.1, feishu\\_flow", \
	dir."/feishu_tls.plot" using 1:3 with lines dashtype 2 lc 2 title "HTTPS + HTTP/2, libcurl multi loop", \
	"" using 1:2 with linespoints lc 2 lw 2 title "HTTPS + HTTP/2, feishu\\_flow"
