# SPDX-License-Identifier: Apache-2.0
"""Command lines, right and wrong, for QEMU's tools and for `blk`; and where the two differ, why."""

from __future__ import annotations

from dataclasses import dataclass

from blocklayer.cli.io import all_commands
from blocklayer.cli.io_help import help_text

IMG = """
-
--foo
-T
foo
info
info data.qed empty.qed
info --foo data.qed
info -f
info data.qed -f
info --output
info --output=xml data.qed
info --out=human data.qed
info --o=human data.qed
info nonexistent
info folder
info ''
info -f foo data.qed
info -f raw data.qed
info -fraw data.qed
info -f raw -f qed data.qed
info -f qed data.raw
info data.qed
info data.raw
info over.qed
info over.qed --
info -- -U
info -x data.qed
info -Ux data.qed
info --backing-chain=1 data.qed
info --backing-chain top.qed
info folder/far.qed
info --backing-chain folder/far.qed
info -U data.qed
info -U --force-share data.qed
info --image-opts driver=qed,file.filename=data.qed
info --image-opts -f qed driver=qed,file.filename=data.qed
info --object foo data.qed
info --object secret data.qed
info --object secret,id=a,data=x data.qed
info --object id=a data.qed
check
check data.qed empty.qed
check nonexistent
check data.qed
check -q data.qed
check --output=xml data.qed
check data.raw
check --output=json data.raw
check -f raw data.qed
check -f qed data.raw
check -r
check -r foo data.qed
check -r data.qed
check -r all data.qed
check -r leaks data.qed
check -T foo data.qed
check -T none data.qed
check -U data.qed
check -U -r all leaky.qed
check leaky.qed
check -q leaky.qed
check wrong.qed
check -q wrong.qed
check -r all wrong.qed
check -r leaks wrong.qed
check twice.qed
check -r all leaky.qed
check -r leaks leaky.qed
check -r all twice.qed
map
map data.qed empty.qed
map nonexistent
map data.qed
map empty.qed
map data.raw
map over.qed
map top.qed
map -f raw data.raw
map --output=json data.qed
map --output=json empty.qed
map --output=json data.raw
map --output=json over.qed
map --output=json top.qed
map --output=foo data.qed
map -s 64k -l 4k over.qed
map -s 64k -l 4k --output=json over.qed
map --start-offset=1000 --max-length 100000 --output=json top.qed
map -s 10M data.qed
map -s 10M --output=json data.qed
map -s 1M --output=json data.qed
map -l 0 data.qed
map -l 0 --output=json data.qed
map -s x data.qed
map -s -1 data.qed
map -l x data.qed
map -l 9E data.qed
create
create -f qed
create new.raw
create new.raw 1M
create new.raw 1M -f
create -f qed new.qed 1M
create -fqed new.qed 1M
create -qfqed new.qed 1M
create -f=qed new.qed 1M
create -f qed -q new.qed 1M
create -f qed new.qed 1M x
create -f foo new.x 1M
create -f qed new.qed 1.5M
create -f qed new.qed 0
create -f qed new.qed 0x100000
create -f qed new.qed 1X
create -f qed new.qed 1KB
create -f qed new.qed 1.5
create -f qed new.qed 1M1
create -f qed new.qed 1e3
create -f qed new.qed ''
create -f qed new.qed -- -1
create -f qed new.qed 99999999999G
create new.raw 8E
create -- -new.raw 1M
create -f qed -o cluster_size=4k,table_size=2 new.qed 1M
create -f qed -o cluster_size=4k -o table_size=2 new.qed 1M
create -f qed -o cluster_size=5k new.qed 1M
create -f qed -o cluster_size new.qed 1M
create -f qed -o table_size=3 new.qed 1M
create -f qed -o foo=1 new.qed 1M
create -f qed -o size=1M new.qed
create -f qed -o size=1M,size=2M new.qed
create -f qed -o size=1M new.qed 2M
create -f qed -o , new.qed 1M
create -f qed -o ,foo=1 new.qed 1M
create -f qed -o '' new.qed 1M
create -f qed -o size=1M, new.qed
create -f qed -o help
create -f qed -o '?'
create -f qed -o foo=1,help
create -f raw -o help
create -f foo -o help
create -f qed -b data.raw new.qed
create -f qed -b data.raw -F raw new.qed
create -f qed -b data.qed -F qed new.qed
create -f qed -b data.qed -F qed new.qed 512k
create -f qed -b data.qed -F qed new.qed 4M
create -f qed -b nonexistent -F qed new.qed
create -f qed -b nonexistent -F qed -u new.qed
create -f qed -b nonexistent -F qed -u new.qed 1M
create -f qed -b nonexistent -u new.qed 1M
create -f qed -b nonexistent new.qed 1M
create -f qed -b data.raw -F foo new.qed 1M
create -f qed -b '' new.qed 1M
create -f raw -b data.raw -F raw new.raw 1M
create -f raw -b nonexistent -F raw new.raw 1M
create -f raw -F raw new.raw 1M
create -f qed -b new.qed -F qed new.qed 1M
create -f qed -b data.qed -F qed data.qed
create -f qed -o backing_file=data.raw,backing_fmt=raw new.qed
create -f qed -o backing_file=nonexistent -b data.qed -F qed new.qed
create -f qed -b ../data.qed -F qed folder/new.qed
create -f qed -b data.qed -F qed folder/new.qed
create -f qed nofolder/new.qed 1M
create -f qed folder 1M
create -f qed new.qed 1000
create -o preallocation=falloc new.raw 1M
create -o preallocation=full new.raw 1M
create -o preallocation=foo new.raw 1M
create -f qed 'a b,c.qed' 1M
create --object secret,id=a,data=x new.raw 1M
compare
compare data.qed
compare data.qed data.qed data.qed
compare data.qed data.qed
compare data.qed over.qed
compare data.qed empty.qed
compare -q data.qed empty.qed
compare empty.qed longer.qed
compare longer.qed empty.qed
compare -q empty.qed longer.qed
compare -s empty.qed longer.qed
compare -s data.qed empty.qed
compare -s data.qed data.qed
compare data.qed data.raw
compare data.qed longer.qed
compare over.qed top.qed
compare -f raw -F qed data.qed data.qed
compare -f foo data.qed data.qed
compare -F foo data.qed data.qed
compare nonexistent data.qed
compare data.qed nonexistent
compare -T foo data.qed data.qed
compare -p data.qed data.qed
compare -pq data.qed data.qed
compare -U data.qed over.qed
compare --image-opts driver=qed,file.filename=data.qed driver=qed,file.filename=over.qed
compare --image-opts -f qed data.qed data.qed
convert
convert data.qed
convert data.qed new.raw
convert -p data.qed new.raw
convert -pq data.qed new.raw
convert -O qed data.qed new.qed
convert -O qed over.qed new.qed
convert -O qed top.qed new.qed
convert -O qed -o cluster_size=4k data.raw new.qed
convert -O foo data.qed new.x
convert nonexistent new.raw
convert data.qed data.raw
convert -O qed -o foo=1 data.qed new.qed
convert -O qed -o cluster_size=5k data.qed new.qed
convert -F qed data.qed new.raw
convert -O qed -B data.qed -F qed over.qed over.qed new.qed
convert -O qed -B data.qed -F qed top.qed new.qed
convert -n -O qed data.raw top.qed
convert -n -O qed -S 0 data.raw top.qed
convert -O qed -o help
convert -O qed -o size=2M data.qed new.qed
convert -O qed -o size=512k data.qed new.qed
convert -O qed -o , data.qed new.qed
convert -O qed data.qed data.raw new.qed
convert data.raw data.raw data.raw new.raw
convert -O qed -B data.qed -F qed over.qed new.qed
convert -O qed -B data.qed over.qed new.qed
convert -O qed -o backing_file=data.qed over.qed new.qed
convert -O qed -o backing_file=data.qed,backing_fmt=qed over.qed new.qed
convert -B data.qed -F qed over.qed new.raw
convert -O qed -B nonexistent -F qed data.qed new.qed
convert -n data.qed nonexistent.raw
convert -n data.qed data.raw
convert -n -O qed data.qed longer.qed
convert -n -O qed data.qed data.raw
convert -n -O raw data.raw data.raw
convert -n -o size=1 data.qed data.raw
convert --target-is-zero data.qed new.raw
convert --target-is-zero -C -S 512 top.qed new.raw
convert --target-is-zero -C -c top.qed new.raw
convert --target-is-zero --target-image-opts top.qed new.raw
convert -n -o cluster_size=4k --target-image-opts -O raw top.qed new.raw
convert -n --target-image-opts -O raw top.qed
convert -n -O qed --target-is-zero data.qed longer.qed
convert --target-image-opts data.qed driver=raw,file.filename=data.raw
convert -n --target-image-opts data.raw driver=qed,file.filename=longer.qed
convert -n --target-image-opts -O qed data.raw driver=qed,file.filename=longer.qed
convert -c data.qed new.raw
convert -c -O qed data.qed new.qed
convert -C data.qed new.raw
convert -C -c data.qed new.raw
convert -C -S 4k data.qed new.raw
convert -C --salvage data.qed new.raw
convert -l foo data.qed new.raw
convert -S 0 -O qed data.qed new.qed
convert -S 64k -O qed data.qed new.qed
convert -S 1 data.qed new.raw
convert -S x data.qed new.raw
convert -S 32M data.qed new.raw
convert -m 0 data.qed new.raw
convert -m 17 data.qed new.raw
convert -m x data.qed new.raw
convert -m 4 -W data.qed new.raw
convert -r x data.qed new.raw
convert -r 1G data.qed new.raw
convert -t foo data.qed new.raw
convert -T foo data.qed new.raw
convert -t none -T none data.qed new.raw
convert -f foo data.qed new.raw
convert -f raw -O raw data.qed new.raw
convert --bitmaps data.qed new.qed
convert --skip-broken-bitmaps data.qed new.qed
convert --salvage data.qed new.raw
convert -U data.qed new.raw
convert --image-opts driver=qed,file.filename=data.qed new.raw
convert --image-opts -f qed data.qed new.raw
convert -D data.qed new.raw
convert data.qed data.qed
convert -O qed data.qed nofolder/new.qed
convert data.qed ''
resize
resize data.qed
resize data.qed 2M
resize data.qed +1M
resize -q data.qed 2M
resize data.qed 1M
resize data.qed 2M --foo
resize data.qed 2M 3M
resize --foo data.qed 2M
resize data.qed x
resize data.qed +x
resize data.qed ''
resize data.qed +
resize data.qed 512k
resize data.qed -512k
resize data.qed -- -512k
resize --shrink data.qed -512k
resize --shrink data.qed -2M
resize data.qed -2M
resize data.qed 0
resize nonexistent 2M
resize data.raw 1M
resize -f raw data.raw 1M
resize -f raw data.raw +512k
resize -f raw data.raw 256k
resize -f raw --shrink data.raw 256k
resize -f raw --shrink data.raw -256k
resize -f raw --shrink data.raw -1M
resize -f raw --preallocation=full data.raw 1M
resize -f raw --preallocation=falloc data.raw 1M
resize -f raw --preallocation=metadata data.raw 1M
resize -f raw --preallocation=foo data.raw 1M
resize -f raw --shrink --preallocation=full data.raw 256k
resize --preallocation=full data.qed 2M
resize -f foo data.raw 1M
resize -f raw data.raw 16E
resize data.qed 9999999999G
resize --image-opts driver=qed,file.filename=data.qed 2M
resize over.qed 2M
rebase
rebase over.qed
rebase -b data.qed -F qed data.qed
rebase -b
rebase -b data.qed -F qed over.qed over.qed
rebase -b empty.qed -F qed over.qed
rebase -b empty.qed over.qed
rebase -b data.raw -F raw over.qed
rebase -b longer.qed -F qed top.qed
rebase -b data.qed -F qed top.qed
rebase -b data.qed -F raw over.qed
rebase -b '' over.qed
rebase -b '' top.qed
rebase -p -b empty.qed -F qed over.qed
rebase -pq -b empty.qed -F qed over.qed
rebase -q -b data.qed -F qed over.qed
rebase -u -b empty.qed -F qed over.qed
rebase -u -b data.raw -F raw over.qed
rebase -u -b nonexistent -F qed over.qed
rebase -u -b data.qed over.qed
rebase -u -b '' over.qed
rebase -u over.qed
rebase -b nonexistent -F qed over.qed
rebase -b data.qed -F foo over.qed
rebase -u -b data.qed -F foo over.qed
rebase -b data.qed -F qed nonexistent
rebase -f raw -b data.qed -F qed data.raw
rebase -t foo -b data.qed -F qed over.qed
rebase -T foo -b data.qed -F qed over.qed
rebase -f foo -b data.qed -F qed over.qed
rebase -b over.qed -F qed over.qed
rebase -b data.qed -F qed empty.qed
commit
commit over.qed over.qed
commit nonexistent
commit data.qed
commit -d over.qed
commit over.qed
commit -d top.qed
commit -b over.qed top.qed
commit -b data.qed top.qed
commit -d -b data.qed top.qed
commit -b nonexistent top.qed
commit -b top.qed top.qed
commit -b
commit -p -d over.qed
commit -q -d over.qed
commit -pq -d over.qed
commit -t foo over.qed
commit -r x over.qed
commit -r 1G -d over.qed
commit -f raw over.qed
commit -f foo over.qed
commit -f raw data.raw
commit data.raw
commit -d --image-opts driver=qed,file.filename=over.qed
commit -d -b $PWD/data.qed top.qed
commit -d -b ./data.qed top.qed
measure
measure data.qed empty.qed
measure nonexistent
measure data.qed
measure data.raw
measure --size 1M
measure --size=1000
measure --size x
measure --size 1M data.qed
measure -O raw data.qed
measure -O qed data.qed
measure -O foo data.qed
measure -O foo --size 1M
measure -o foo=1 --size 1M
measure -O qed -o foo=1 --size 1M
measure -o help --size 1M
measure -o , --size 1M
measure -l foo data.qed
measure --size 1M -f raw
measure --size 1M --image-opts
measure --size 1M -l foo
measure --size 1M -U
measure --output=json data.qed
measure --output=xml data.qed
measure -f foo data.qed
measure --image-opts driver=qed,file.filename=data.qed
"""
"""Arguments of `qemu-img`; a line with a dash alone is none at all."""


IO = r"""
read 0 4k
read -q 0 4k
read -C 0 4k
read -qC 0 4k
read -v 64k 20
read -vC 64k 16
read -vq 64k 16
read -P 0 0 4k
read -P 1 0 4k
read -P 0x1 64k 4k
read -P 01 64k 4k
read -qP1 0 4k
read -P 1 60k 8k
read -P 1 -s 4k -l 4k 60k 8k
read -P 1 -s 4k 60k 8k
read -P 0 -l 4k 60k 8k
read -P 0 -s 8k 0 4k
read -P 0 -s 512 -l 4k 0 4k
read -s 1 0 4k
read -l 1 0 4k
read -P x 0 4k
read -P 256 0 4k
read -P -1 0 4k
read -s x -P 0 0 4k
read -P 0 -l x 0 4k
read -p 0 4k
read 0 4k -q
read
read 0
read -P
read 0 4k -P
read x 1
read 0 x
read 0 1k 2
read -x 0 4k
read -i 0 4k
read -1 4k
read -- -1 4k
read 1M 1
read 0 2M
read 1020k 8k
read 0 4G
read 0 2147483137
read 0 99999999999999999999
read 0 1k1
read 0 1.5k
read 0x200 0x10
read 010 1
read 1 5
read 0 0
read -b 0 4k
read -b 1 4k
r 0 4k
READ 0 4k
#
foo bar
'read' 0 4k
write 0 4k
write -q 0 4k
write -C 0 4k
write -P 7 0 64k
write -P 7 63k 2k
write -P 300 0 1
write 1 1
write 0 0
write -p 0 4k
w 0 512
write
write 0
write 0 1 2
write -i 0 4k
write -v 0 4k
write 1M 1
write 0 2M
write 0 4G
write x 1
write -z 128k 64k
write -z 60k 8k
write -z 1 1
write -z -u 128k 64k
write -z 0 4G
write -u 128k 64k
write -n 0 64k
write -z -n 128k 64k
write -z -P 1 0 64k
write -s pattern -P 1 0 64k
write -s pattern 0 64k
write -s nonexistent 0 64k
write -s nothing 0 64k
write -f 0 4k
write -f -b 0 4k
write -f -c 0 4k
write -b 0 4k
write -b -z 0 4k
write -c 0 4k
write -c 1 4k
write -c -z 0 4k
readv 60k 4k 8k
readv -P 0 0 1k 2k
readv -P 1 0 1k 2k
readv -v 64k 8 8
readv -C 0 1k
readv -q 0 1k
readv 0
readv 0 x
readv 0 2G
readv 0 1G 1G
readv 1M 1k
writev 0 1k 2k
writev -P 3 0 1k 2k
writev -C 0 1k 2k
writev -q 0 1k
writev -f 0 1k 1k
writev 0
writev 0 x
writev 0 0
writev 1M 1k
aio_read 0 4k
aio_read 0 4k 4k
aio_read -P 0 0 4k
aio_read -P 1 0 4k
aio_read -v 64k 16
aio_read -q 0 4k
aio_read -C 0 4k
aio_read -i 0 4k
aio_read 1M 4k
aio_read 0
aio_read x 1
aio_write 0 4k
aio_write -P 9 0 4k 4k
aio_write -z 64k 64k
aio_write -z -u 128k 64k
aio_write -z 0 4k 4k
aio_write -u 0 4k
aio_write -f 0 4k
aio_write -i 0 4k
aio_write -n 0 4k
aio_write -q 0 4k
aio_write 1M 4k
aio_write 0
aio_flush
aio_flush 1
flush
f
discard 64k 4k
discard -q 64k 4k
discard -C 64k 4k
discard 0
discard 0 3G
discard 1M 4k
discard -P 0 4k
d 64k 4k
length
l
length 1
truncate 2M
truncate 2M 3M
truncate 512k
truncate -m off 2M
truncate -m foo 2M
truncate -m full 2M
truncate x
truncate
t 2M
alloc 0
alloc 64k
alloc 0 1M
alloc 60k 8k
alloc 64k 10
alloc 0 2M
alloc 2M
alloc x
alloc 0 x
alloc
alloc 0 1 2
a 256k 1M
map
map 1
info
i
sleep 1
sleep x
sleep
help read
help foo
help ?
help 1 2
quit
q
close
abort 1
open data.qed
open
open -x
open data.qed data.qed
reopen
reopen -r
reopen -x
reopen a
reopen -r -w
reopen -c foo
reopen -c none
reopen -o foo=1
break l2_load A
break foo
resume A
remove_break A
wait_break
"""
"""Commands of `qemu-io`, each on data.qed."""

IO_PROGRAM = r"""
-c length
-c length nonexistent
-c length -c "read 0 4k" data.qed
-c foo -c length data.qed
-c "read 9M 1" -c "read 0 1" data.qed
-c quit -c length data.qed
-c close -c length data.qed
-c close -c close data.qed
-c close -c "open over.qed" -c length data.qed
-c "open top.qed" -c length
-c "open -r data.qed" -c "write 0 1"
-c "open -o driver=qed,file.filename=data.qed" -c length
-c "open -o driver=raw data.qed" -c length
-c "open -o foo=1 data.qed" -c length
-c "open nonexistent"
-c "open -t foo data.qed"
-c "open -d foo data.qed"
-c "open -k data.qed"
-c "open -U data.qed"
-c "open -U -r data.qed" -c length
-c "open -s data.qed" -c "write -P 9 0 4k" -c "read -P 9 0 4k"
-c "open -n data.qed" -c "read -P 1 64k 64k"
-c "open data.qed" data.qed
-r -c "write 0 1k" data.qed
-r -c "write -z 0 1k" data.qed
-r -c "writev 0 1k" data.qed
-r -c "aio_write 0 1k" data.qed
-r -c "discard 0 1k" data.qed
-r -c "truncate 2M" data.qed
-r -c flush data.qed
-r -c reopen -c "write 0 1k" data.qed
-r -c "reopen -w" -c "write 0 1k" data.qed
-c "reopen -r" -c "write 0 1k" data.qed
-c "write -P 9 0 4k" -c "reopen -c none" -c "read -P 9 0 4k" data.qed
-f qed -c length data.qed
-f raw -c "alloc 0 1M" data.raw
-f raw -c map data.raw
-f raw -c info data.raw
-f raw -c "write -z -u 128k 4k" -c map data.raw
-f raw -c "discard 128k 4k" -c map data.raw
-f foo -c length data.qed
-c "write 0 4k" data.raw
-c "read 0 4k" -c map data.raw
--image-opts -c length driver=qed,file.filename=data.qed
--image-opts -f qed -c length driver=qed,file.filename=data.qed
--image-opts -c "open driver=qed,file.filename=data.qed" -c length
-U -c length data.qed
-U -r -c length data.qed
-s -c "write -P 9 0 4k" -c "read -P 9 0 4k" -c length over.qed
-t foo data.qed
-d foo data.qed
-i foo data.qed
-d unmap -f raw -c "discard 0 64k" data.raw
-n -c "read -P 1 64k 64k" data.qed
-t none -c "write -P 8 1 4k" -c "read -P 8 1 4k" data.qed
-k -c length data.qed
-k -n -c "read 0 4k" data.qed
-i threads -c "read 0 4k" data.qed
-m -c "read 0 4k" data.qed
-c "aio_write -P 5 0 4k" -c aio_flush -c "read -P 5 0 4k" data.qed
-c "aio_read 0 4k" -c aio_flush -c "aio_read 1M 1" -c aio_flush data.qed
-c map over.qed
-c map top.qed
-c "alloc 60k 16k" top.qed
-c "write -P 1 100k 1" -c "read -P 1 100k 1" -c "read -P 0 -l 1 101k 1" over.qed
-x data.qed
-c
--foo
data.qed data.qed
"""
"""Arguments of `qemu-io`."""

IO_SCRIPTS = (
    "length",
    "length\n",
    "read -q 0 4k\nlength\n",
    "\n\nlength\n",
    "  length  \n",
    "# comment\nlength\n",
    "quit\nlength\n",
    "foo\nlength\n",
    "read 9M 1\nlength\n",
    "close\nlength\nopen data.qed\nlength\n",
    "",
)
"""What stdin says to `qemu-io data.qed`."""


@dataclass(frozen=True)
class Difference:
    """How `blk` answers otherwise than QEMU, on purpose. What is None is as QEMU has it."""

    reason: str
    code: int | None = None
    stdout: str | None = None
    complaint: str | None = None
    files: tuple[str, ...] = ()
    """Files that differ afterwards."""


_LEAKS = """
{} leaked clusters were found on the image.
This means waste of disk space, but no harm to data.
"""
_ERRORS = """
{} errors were found on the image.
Data may be corrupted, or further writes to the image may corrupt it.
"""
_REPAIRED = """The following inconsistencies were found and repaired:

    {} leaked clusters
    {} corruptions

Double checking the fixed image now...
No errors were found on the image.
"""
_QED_HELP = """Supported qed options:
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  cluster_size=<size>    - Cluster size (in bytes)
  size=<size>            - Virtual disk size
  table_size=<size>      - L1/L2 table size (in clusters)

Name the target as well to see the options that files have.
"""
_NAMED = "each problem is named, on stderr"
_NO_PROTOCOL = "the hint is in our own words, and preallocation belongs to raw images"
_ANNOUNCED = "a new image is announced when it is there"
_TARGET = "an error of the target names it, whatever it is"
_NO_SNAPSHOTS = "there is no device whose name could be told"
_NAME_TWICE = "the file that could not be opened is named by the error itself"
_UNALIGNED = "ERROR: L2 entry 16 of table 0 (guest offset 0x10000): the cluster at 0x12345 is not"
_SHARED = (
    "ERROR: L2 entry 17 of table 0 (guest offset 0x11000): the cluster at 0x4000 is referenced"
)
_LEAKED = "Leaked: 2 leaked clusters at 0x17000: nothing references them"

IMG_DIFFERENCES = {
    "info folder": Difference(
        "block devices are welcome, too",
        complaint="TOOL: Could not open 'folder': The file is neither a regular file nor",
    ),
    "info ''": Difference("said plainly", complaint="TOOL: The file name is empty"),
    "info -Ux data.qed": Difference(
        "the letter is what is wrong, not the cluster of letters (or even the word before it)",
        complaint="TOOL: unrecognized option '-x'",
    ),
    "check -U -r all leaky.qed": Difference(
        "the library's words", complaint="TOOL: force_share can only be used without repair"
    ),
    "check --output=json data.raw": Difference(
        "who asks for JSON gets errors in JSON, too", complaint='{"error": {"class": "NotSupported"'
    ),
    "check leaky.qed": Difference(_NAMED, complaint=_LEAKED),
    "check wrong.qed": Difference(_NAMED, complaint=_UNALIGNED),
    "check twice.qed": Difference(_NAMED, complaint=_SHARED),
    "check -r all wrong.qed": Difference(_NAMED, complaint=_UNALIGNED),
    "check -r leaks wrong.qed": Difference(
        "repairing leaks repairs leaks alone, and none while entries are wrong",
        code=2,
        stdout=_ERRORS.format(1)
        + _LEAKS.format(1)
        + "18/256 = 7.03% allocated, 11.11% fragmented, 0.00% compressed clusters\n",
        complaint=_UNALIGNED,
        files=("wrong.qed",),
    ),
    "check -r all leaky.qed": Difference(
        "leaks can be given back",
        code=0,
        stdout=_REPAIRED.format(2, 0)
        + "18/256 = 7.03% allocated, 5.56% fragmented, 0.00% compressed clusters\n",
        complaint=_LEAKED,
    ),
    "check -r leaks leaky.qed": Difference(
        "leaks can be given back",
        code=0,
        stdout=_REPAIRED.format(2, 0)
        + "18/256 = 7.03% allocated, 5.56% fragmented, 0.00% compressed clusters\n",
        complaint=_LEAKED,
    ),
    "check -r all twice.qed": Difference(
        "a cluster that is shared by mistake can be copied",
        code=0,
        stdout=_REPAIRED.format(1, 1)
        + "18/256 = 7.03% allocated, 16.67% fragmented, 0.00% compressed clusters\n",
        complaint=_SHARED,
    ),
    "create -f qed -o cluster_size=5k new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed -o table_size=3 new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed nofolder/new.qed 1M": Difference(_ANNOUNCED, stdout=""),
    "create -o preallocation=foo new.raw 1M": Difference(
        _ANNOUNCED, stdout="", complaint="TOOL: new.raw: Unsupported preallocation mode 'foo'"
    ),
    "create -f qed folder 1M": Difference(
        _ANNOUNCED,
        stdout="",
        complaint="TOOL: folder: Could not create image: Could not open 'folder': Is a directory",
    ),
    "create -f qed -o help": Difference(_NO_PROTOCOL, stdout=_QED_HELP),
    "create -f qed -o '?'": Difference(_NO_PROTOCOL, stdout=_QED_HELP),
    "create -f qed -o foo=1,help": Difference(_NO_PROTOCOL, stdout=_QED_HELP),
    "create -f raw -o help": Difference(
        _NO_PROTOCOL,
        stdout="Supported raw options:\n"
        "  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)\n"
        "  size=<size>            - Virtual disk size\n"
        "\nName the target as well to see the options that files have.\n",
    ),
    "create -f qed -b data.raw -F foo new.qed 1M": Difference(
        _NAME_TWICE, complaint="TOOL: new.qed: Could not open 'data.raw': Unknown driver 'foo'"
    ),
    "create -f qed -b new.qed -F qed new.qed 1M": Difference(
        "the file is not there yet: there is nothing that it could be the same as",
        complaint="TOOL: new.qed: Could not open 'new.qed': No such file or directory",
    ),
    "create -f qed new.qed 1000": Difference(
        "told is the size the disk has",
        stdout="Formatting 'new.qed', fmt=qed size=1024 cluster_size=65536\n",
    ),
    "compare -s data.qed empty.qed": Difference(
        "where the image ends is no part of an extent's status",
        stdout="Strict mode: Offset 65536 block status mismatch!\n",
    ),
    "compare -p data.qed data.qed": Difference(
        "the answer does not stand in the line of the progress",
        stdout="\nImages are identical.\n",
    ),
    "convert -O qed -o foo=1 data.qed new.qed": Difference(
        _TARGET, complaint="TOOL: new.qed: error while converting qed: Invalid parameter 'foo'"
    ),
    "convert -O qed -o cluster_size=5k data.qed new.qed": Difference(
        "a failed creation leaves nothing behind", files=("new.qed",)
    ),
    "convert -O qed -o help": Difference(_NO_PROTOCOL, stdout=_QED_HELP),
    "convert -O qed -B data.qed -F qed top.qed new.qed": Difference(
        "what is written in a layer between source and backing file is part of the source",
        files=("new.qed",),
    ),
    "convert -O qed -o size=2M data.qed new.qed": Difference(
        "a size that is asked for is given", files=("new.qed",)
    ),
    "convert -O qed -o size=512k data.qed new.qed": Difference(
        "a size that is asked for is given, or refused",
        code=1,
        complaint="TOOL: output file is smaller than input file",
        files=("new.qed",),
    ),
    "convert -F qed data.qed new.raw": Difference(
        _TARGET,
        complaint="TOOL: new.raw: error while converting raw: Backing file format not supported",
    ),
    "convert -B data.qed -F qed over.qed new.raw": Difference(
        _TARGET,
        complaint="TOOL: new.raw: error while converting raw: Backing file not supported for",
    ),
    "convert -O qed -B nonexistent -F qed data.qed new.qed": Difference(
        "the backing file is looked for before anything is made",
        complaint="TOOL: new.qed: error while converting qed: Could not open 'nonexistent'",
        files=("new.qed",),
    ),
    "convert -l foo data.qed new.raw": Difference(
        _NO_SNAPSHOTS, complaint="TOOL: Failed to load snapshot: Block format 'qed' has no internal"
    ),
    "convert -t foo data.qed new.raw": Difference(
        "a wrong cache mode is noticed before the target is made", files=("new.raw",)
    ),
    "convert data.qed data.qed": Difference(
        "said plainly",
        complaint="TOOL: 'data.qed' is part of the source and cannot be the target",
    ),
    "convert data.qed ''": Difference("said plainly", complaint="TOOL: The file name is empty"),
    "resize --shrink data.qed -512k": Difference(
        "QED disks can shrink",
        code=0,
        stdout="Image resized.\n",
        complaint="",
        files=("data.qed",),
    ),
    "resize -f raw --preallocation=metadata data.raw 1M": Difference(
        "one wording for all formats", complaint="TOOL: Unsupported preallocation mode 'metadata'"
    ),
    "resize data.qed 9999999999G": Difference(
        "too large is not negative",
        complaint="TOOL: Value '9999999999G' is out of range for parameter 'size'",
    ),
    "rebase -b data.qed -F raw over.qed": Difference(
        "the same file in another format shows another disk", files=("over.qed",)
    ),
    "commit data.raw": Difference(
        "nothing is written: no guess can do harm",
        complaint="TOOL: Image does not have a backing file",
    ),
    "measure -O qed data.qed": Difference(
        "QED can be measured",
        code=0,
        stdout="required size: 720896\nfully allocated size: 1638400\n",
        complaint="",
    ),
    "measure -l foo data.qed": Difference(
        _NO_SNAPSHOTS, complaint="TOOL: Failed to load snapshot: Block format 'qed' has no internal"
    ),
}

_DISCARDED = "QED gives the space back"
_READ_HELP, _HELP_HELP = (
    f"USAGE of {name}\n" + help_text(all_commands()[name], name).partition("\n")[2] + "\n"
    for name in ("read", "?")
)

IO_DIFFERENCES = {
    "write -z -n 128k 64k": Difference(
        "whole QED clusters are zeroed without writing zeroes",
        code=0,
        stdout="wrote 65536/65536 bytes at offset 131072\n64 KiB, 1 ops; TIME\n",
    ),
    "discard 64k 4k": Difference(_DISCARDED, files=("data.qed",)),
    "discard -q 64k 4k": Difference(_DISCARDED, files=("data.qed",)),
    "discard -C 64k 4k": Difference(_DISCARDED, files=("data.qed",)),
    "d 64k 4k": Difference(_DISCARDED, files=("data.qed",)),
    "truncate 512k": Difference("QED disks can shrink", code=0, complaint="", files=("data.qed",)),
    "truncate 2M 3M": Difference(
        "a second size is a mistake", code=1, stdout="USAGE of truncate\n", files=("data.qed",)
    ),
    "help read": Difference("our own words", stdout=_READ_HELP),
    "help ?": Difference("our own words", stdout=_HELP_HELP),
}

_OWN_USAGE = "wrong options are told in one way by all commands, without the whole help"
_FORCE_SHARE = "TOOL: can't open device data.qed: force_share can only be used with read-only disks"

IO_PROGRAM_DIFFERENCES = {
    '-c "open -o foo=1 data.qed" -c length': Difference(
        "our own words", complaint="TOOL: can't open device data.qed: Invalid parameter 'foo'"
    ),
    '-c "open -U data.qed"': Difference("the library's words", complaint=_FORCE_SHARE),
    "-U -c length data.qed": Difference("the library's words", complaint=_FORCE_SHARE),
    "-x data.qed": Difference(_OWN_USAGE, stdout="", complaint="TOOL: unrecognized option '-x'"),
    "-c": Difference(_OWN_USAGE, stdout="", complaint="TOOL: missing argument for option '-c'"),
    "--foo": Difference(_OWN_USAGE, stdout=""),
    "data.qed data.qed": Difference(
        _OWN_USAGE, stdout="", complaint="TOOL: Unexpected argument: data.qed"
    ),
}
