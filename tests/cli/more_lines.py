# SPDX-License-Identifier: Apache-2.0
"""More command lines: of commands that copy, time and refuse, and of every option of the others."""

from __future__ import annotations

from tests.cli.lines import Difference

IMG = r"""
dd
dd if=data.qed
dd of=new.raw
dd if=data.qed of=new.raw
dd -f qed -O qed if=data.qed of=new.qed
dd -f qed -O qed bs=4k if=data.qed of=new.qed
dd -O raw bs=1M if=data.qed of=new.raw
dd bs=64k count=2 if=data.qed of=new.raw
dd bs=64k count=3 skip=1 if=data.qed of=new.raw
dd bs=64k count=1 skip=3 if=data.qed of=new.raw
dd bs=64k skip=1 if=data.qed of=new.raw
dd bs=64k skip=100 if=data.qed of=new.raw
dd bs=64k skip=16 if=data.qed of=new.raw
dd bs=64k count=100 if=data.qed of=new.raw
dd bs=1000 count=3 if=data.qed of=new.raw
dd bs=1000 skip=66 if=data.qed of=new.raw
dd bs=1000 count=3 if=data.qed -O qed of=new.qed
dd bs=0 if=data.qed of=new.raw
dd bs=x if=data.qed of=new.raw
dd bs=4G if=data.qed of=new.raw
dd bs=-1 if=data.qed of=new.raw
dd bs= if=data.qed of=new.raw
dd count=x if=data.qed of=new.raw
dd count=0 if=data.qed of=new.raw
dd skip=x if=data.qed of=new.raw
dd seek=1 if=data.qed of=new.raw
dd foo=1 if=data.qed of=new.raw
dd foo if=data.qed of=new.raw
dd if= of=new.raw
dd if=data.qed of=
dd if=data.qed if=data.raw of=new.raw
dd -f foo if=data.qed of=new.raw
dd -O foo if=data.qed of=new.raw
dd -f qed if=data.raw of=new.raw
dd -U if=data.qed of=new.raw
dd --image-opts if=driver=qed,file.filename=data.qed of=new.raw
dd --image-opts -f qed if=data.qed of=new.raw
dd if=nonexistent of=new.raw
dd if=data.qed of=data.qed
dd if=data.qed of=data.raw
dd if=over.qed of=data.raw
dd if=top.qed -O qed of=new.qed
dd if=data.qed of=none/new.raw
dd -q if=data.qed of=new.raw
dd --foo if=data.qed of=new.raw
dd --object secret,id=a,data=x if=data.qed of=new.raw
dd if=data.qed of=new.raw conv=notrunc
dd if=data.qed of=folder
dd -O qed if=data.qed of=longer.qed
dd -f
dd bs=512 skip=3 count=2 if=data.raw of=new.raw
dd count=1.5 if=data.qed of=new.raw
dd count=1k if=data.qed of=new.raw
dd count=99999999999G if=data.qed of=new.raw
dd if=json:{} of=new.raw
dd if=data.raw of=json:{}
dd skip=99999999999999999 if=data.raw of=new.raw
dd count=4E bs=4k if=data.raw of=new.raw
dd if=data.raw of=/dev/null
bench
bench data.qed data.qed
bench -c 10 data.qed
bench -c 10 -d 1 data.qed
bench -c 0 data.qed
bench -c x data.qed
bench -c -1 data.qed
bench -c 0x10 data.qed
bench -c 010 data.qed
bench -c +3 data.qed
bench -c '' data.qed
bench -c 10 -d x data.qed
bench -c 10 -d 1k data.qed
bench -c 10 -s 4k data.qed
bench -c 10 -s 0 data.qed
bench -c 10 -s x data.qed
bench -c 10 -s 1000 data.qed
bench -c 10 -s 2M data.qed
bench -c 10 -s 4G data.qed
bench -c 10 -S 0 data.qed
bench -c 10 -S 8k data.qed
bench -c 10 -S x data.qed
bench -c 10 -S 4G data.qed
bench -c 10 -o 1M data.qed
bench -c 10 -o 1020k data.qed
bench -c 10 -o 2M data.qed
bench -c 10 -o x data.qed
bench -c 10 -w data.qed
bench -c 10 -w -S 64k data.qed
bench -c 10 -w -S 300k --pattern 9 data.qed
bench -c 10 -w --pattern 7 data.qed
bench -c 10 -w --pattern 0x7 data.qed
bench -c 10 -w --pattern 256 data.qed
bench -c 10 -w --pattern x data.qed
bench -c 10 --pattern 7 data.qed
bench -c 10 -w --flush-interval 5 -d 5 data.qed
bench -c 10 -w --flush-interval 5 data.qed
bench -c 100 -w --flush-interval 65 data.qed
bench -c 10 -w --flush-interval x data.qed
bench -c 10 --flush-interval 5 data.qed
bench -c 10 --no-drain data.qed
bench -c 10 -w --no-drain data.qed
bench -c 10 -w --no-drain --flush-interval 5 -d 1 data.qed
bench -c 10 -q data.qed
bench -c 10 -n data.qed
bench -c 10 -n -t none data.qed
bench -c 10 -t none data.qed
bench -c 10 -t foo data.qed
bench -c 10 -i threads data.qed
bench -c 10 -i native data.qed
bench -c 10 -i native -t none data.qed
bench -c 10 -i foo data.qed
bench -c 10 -i io_uring data.qed
bench -c 10 -U data.qed
bench -c 10 -U -w data.qed
bench -c 10 -f raw data.qed
bench -c 10 -f foo data.qed
bench -c 10 --image-opts driver=qed,file.filename=data.qed
bench -c 10 --image-opts -f qed driver=qed,file.filename=data.qed
bench -c 10 -w data.raw
bench -c 10 -w -f raw data.raw
bench -c 10 nonexistent
bench -c 10 -w over.qed
bench -c 99999999999 data.qed
bench -c 10 -s 3M -w data.qed
bench -c 1 -s 3M data.qed
bench -c 3 -s 600k -d 1 -w --pattern 3 data.qed
snapshot
snapshot -l
snapshot data.qed
snapshot data.raw
snapshot -l data.qed
snapshot -l data.raw
snapshot -f qed -l data.qed
snapshot -l nonexistent
snapshot nonexistent
snapshot data.qed data.qed
snapshot -c a data.qed
snapshot -c a data.raw
snapshot -c '' data.qed
snapshot -a a data.qed
snapshot -d a data.qed
snapshot -l -c a data.qed
snapshot -c a -l data.qed
snapshot -c a -d a data.qed
snapshot -a a -a b data.qed
snapshot -q -l data.qed
snapshot -q -c a data.qed
snapshot -U -l data.qed
snapshot -U -c a data.qed
snapshot --image-opts -l driver=qed,file.filename=data.qed
snapshot -z data.qed
snapshot -c
snapshot --object secret,id=a,data=x -l data.qed
snapshot -a a over.qed
snapshot -a a data.raw
snapshot -d a data.raw
bitmap
bitmap data.qed
bitmap --add data.qed foo
bitmap --add data.raw foo
bitmap --add data.qed
bitmap --add data.qed foo bar
bitmap --add nonexistent foo
bitmap --add -g 64k data.qed foo
bitmap --add -g x data.qed foo
bitmap -g 64k data.qed foo
bitmap --remove -g 64k data.qed foo
bitmap --remove data.qed foo
bitmap --clear data.qed foo
bitmap --enable data.qed foo
bitmap --disable data.qed foo
bitmap --disable --add data.qed foo
bitmap --merge bar data.qed foo
bitmap --merge bar -b over.qed -F qed data.qed foo
bitmap --merge bar -b nonexistent -F qed data.qed foo
bitmap --add -b over.qed data.qed foo
bitmap --add -F qed data.qed foo
bitmap --image-opts -f qed --add data.qed foo
bitmap --image-opts --add driver=qed,file.filename=data.qed foo
bitmap -f foo --add data.qed foo
bitmap -f raw --add data.qed foo
bitmap --foo data.qed foo
bitmap --merge
bitmap -q --add data.qed foo
bitmap -U --add data.qed foo
bitmap --add -g 1000 data.qed foo
bitmap --add data.qed ''
amend
amend data.qed
amend -o
amend -o foo=1 data.qed
amend -o size=1M data.qed
amend -o help
amend -o help data.qed
amend -f qed -o help
amend -f raw -o help
amend -f foo -o help
amend -o foo=1 data.raw
amend -f raw -o size=1M data.raw
amend -o backing_file=over.qed data.qed
amend -o size=1M nonexistent
amend -o size=1M data.qed data.qed
amend -o size=1M -t foo data.qed
amend -o size=1M -t none data.qed
amend -o size=1M -p data.qed
amend -o size=1M -q data.qed
amend -o size=1M --force data.qed
amend -o size=1M -f foo data.qed
amend -o size=1M --image-opts driver=qed,file.filename=data.qed
amend -o size=1M --image-opts -f qed data.qed
amend -o , data.qed
amend -o '' data.qed
amend -o ,foo data.qed
amend -o help nonexistent
amend -o help data.qed data.raw
amend -p -o help -f qed
info json:{"driver":"qed","file.filename":"data.qed"}
info 'json:{"driver":"qed","file":{"driver":"file","filename":"data.qed"}}'
info 'json:{"driver":"qed","file.filename":"data.qed"}'
info --output=json 'json:{"driver":"qed","file.filename":"data.qed"}'
info file:data.qed
info file:over.qed
info --output=json file:over.qed
info --backing-chain file:over.qed
info --image-opts file.filename=over.qed
info --image-opts driver=raw,file.filename=data.qed
info --image-opts driver=qed,file.driver=file,file.filename=data.qed
info --image-opts driver=qed,file.driver=foo,file.filename=data.qed
info --image-opts driver=foo,file.filename=data.qed
info --image-opts driver=file,filename=data.raw,drop-cache=on,aio-max-batch=5
info --image-opts driver=file,filename=data.raw,x-check-cache-dropped=off
info --image-opts driver=qed,file.filename=data.qed,file.drop-cache=off,file.locking=off
info --image-opts driver=file,filename=data.raw,drop-cache=x
info --image-opts driver=file,filename=data.raw,aio-max-batch=x
info null-co://
info null-aio://
info --output=json null-co://
info --output=json --image-opts driver=null-aio,size=1M
info --output=json --image-opts driver=null-co,size=1M,latency-ns=5
info --image-opts driver=null-co,latency-ns=-1
info --image-opts driver=blkdebug,image.filename=data.raw,align=513
info --image-opts driver=blkdebug,image.filename=data.raw,align=2147483648
info --image-opts driver=blkdebug,image.filename=data.raw,max-transfer=2147483647
info --image-opts driver=blkdebug,image.filename=data.raw,align=4k,max-write-zero=4097
info --image-opts driver=blkdebug,image.filename=data.raw,align=4k,opt-write-zero=512
info --image-opts driver=blkdebug,image.filename=data.raw,max-discard=5,opt-discard=4
info --image-opts foo=1
info --image-opts data.qed
info --image-opts driver=qed
info --image-opts driver=qed,foo=1,file.filename=data.qed
info --image-opts driver=qed,file.filename=data.qed,file.foo=1
info --image-opts driver=qed,file.filename=data.qed,read-only=on
info --image-opts driver=qed,file.filename=data.qed,read-only=maybe
info --image-opts driver=qed,file.filename=data.qed,cache.direct=on
info --image-opts driver=qed,file.filename=data.qed,file.locking=off
info --image-opts driver=qed,file.filename=data.qed,file.node-name=a,node-name=b
info --image-opts driver=qed,file.filename=data.qed,file.read-only=on
info --image-opts driver=qed,file.filename=data.qed,file.cache.direct=on,file.aio=threads
info --image-opts driver=qed,file.filename=data.qed,file.force-share=on
info 'json:{"driver":"raw","file":{"driver":"file","filename":"data.raw","locking":"on"}}'
info --image-opts driver=qed,file.filename=data.qed,detect-zeroes=on,discard=on,auto-read-only=on
info --image-opts driver=qed,file.filename=data.qed,detect-zeroes=foo
info --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap
info --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap,discard=unmap
info --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap,discard=off
info --image-opts driver=qed,file.filename=data.qed,discard=foo
info --image-opts driver=qed,file.filename=data.qed,discard=
info --image-opts driver=qed,file.filename=data.qed,auto-read-only=foo
info --image-opts driver=qed,file.filename=data.qed,node-name=1a
info --image-opts driver=qed,file.filename=data.qed,node-name=
info --image-opts driver=qed,file.filename=data.qed,node-name=a12345678901234567890123456789012
info --image-opts driver=qed,file.filename=data.qed,node-name=a,file.node-name=a
info --image-opts driver=qed,file.filename=data.qed,file.discard=on,file.detect-zeroes=unmap
info --image-opts driver=qed,file.filename=data.qed,file.discard=off,file.detect-zeroes=unmap
info --image-opts driver=qed,file.filename=data.qed,file.detect-zeroes=foo
info 'json:{"driver":"qed","file.filename":"data.qed","detect-zeroes":true,"discard":false}'
info 'json:{"driver":"qed","file.filename":"data.qed","auto-read-only":true,"node-name":"a"}'
map --image-opts driver=qed,file.filename=over.qed,backing.detect-zeroes=on,backing.node-name=b
map --image-opts driver=qed,file.filename=over.qed,backing.discard=foo
map --image-opts driver=qed,file.filename=over.qed,node-name=a,backing.node-name=a
map --image-opts driver=qed,file.filename=top.qed,backing.backing.driver=raw
convert --image-opts driver=qed,file.filename=over.qed,backing.file.locking=off new.raw
convert -n --target-image-opts data.raw driver=qed,file.filename=longer.qed,detect-zeroes=unmap
convert -n --target-image-opts data.raw driver=qed,file.filename=longer.qed,discard=off
info --image-opts driver=qed,file.filename=over.qed,backing=
map --image-opts driver=qed,file.filename=over.qed,backing=
commit --image-opts driver=qed,file.filename=over.qed,backing=
convert -O raw --image-opts driver=qed,file.filename=over.qed,backing= new.raw
convert 'json:{"driver":"qed","file.filename":"over.qed","backing":""}' new.raw
info --backing-chain --image-opts driver=qed,file.filename=over.qed
info --backing-chain --image-opts driver=qed,file.filename=over.qed,backing.driver=foo,backing.x=1
info --image-opts driver=qed,file.filename=over.qed,backing.driver=raw,backing.file.filename=x.raw
info --backing-chain --output=json 'json:{"driver":"qed","file.filename":"over.qed"}'
info json:
info json:{
info 'json:[1]'
info 'json:{"driver":"qed"}'
info 'json:{"driver":"foo","file.filename":"data.qed"}'
info 'json:{"driver":"qed","file.filename":"data.qed","foo":1}'
info 'json:{"file.filename":"data.qed"}'
info foo:bar
info ./data.qed
info $PWD/data.qed
info file:$PWD/data.qed
info file:///data.qed
info file:nonexistent
info -f qed file:data.qed
info -f raw file:data.qed
info --output=json data.qed
info --output=json over.qed
info --output=json leaky.qed
info --backing-chain --output=json top.qed
info --output=json --backing-chain data.raw
info --object secret,id=a,data=x --object secret,id=a,data=x data.qed
info --object secret,id=a data.qed
info --object secret,id=a,foo=1,data=x data.qed
info --object secret,id=a,data=x,format=foo data.qed
info --object secret,id=1a,data=x data.qed
info --object throttle-group,id=a data.qed
info --object throttle-group,id=a,limits.iops-total=5 data.qed
info --object throttle-group,id=a,x-iops-total=5 data.qed
info --object tls-creds-anon,id=a,endpoint=client data.qed
info --object authz-simple,id=a,identity=x data.qed
info --object authz-list,id=a data.qed
info --object qom-type=secret,id=a,data=x data.qed
info --object qom-type=foo,id=a data.qed
info --object foo,id=a data.qed
info --object '{"qom-type":"secret","id":"a","data":"x"}' data.qed
info --object '{"qom-type":"foo","id":"a","data":"x"}' data.qed
info --object '{"qom-type":"secret"' data.qed
info --object '' data.qed
info --object
info --object main-loop,id=a data.qed
check --image-opts driver=qed,file.filename=data.qed
check --image-opts driver=raw,file.filename=data.raw
check --image-opts -f qed data.qed
check --output=json data.qed
check --output=json leaky.qed
check --output=json wrong.qed
check --output=json empty.qed
check empty.qed
check over.qed
check file:data.qed
check 'json:{"driver":"qed","file.filename":"data.qed"}'
check --output=json file:data.qed
check --object secret,id=a,data=x data.qed
check --output=json -r all leaky.qed
check -f raw data.raw
check --repair=all data.qed
check --repair data.qed
check -U --output=json data.qed
check -T unsafe data.qed
check -T writethrough data.qed
check -T directsync data.qed
check -f foo data.qed
check -U -f qed data.qed
check -q nonexistent
check -q data.raw
map --image-opts driver=qed,file.filename=over.qed
map --image-opts --output=json driver=raw,offset=4k,size=64k,file.filename=data.raw
map --image-opts driver=raw,offset=4k,size=64k,file.filename=data.raw
map 'json:{"driver":"qed","file.filename":"data.qed"}'
map file:data.qed
map file:over.qed
map ./over.qed
map $PWD/over.qed
map -U data.qed
map --force-share data.qed
map -f foo data.qed
map --image-opts -f qed data.qed
map -s 512 data.qed
map -s 1 data.qed
map -s 1 --output=json data.qed
map -l 1 --output=json data.qed
map -l 1000 -s 65000 --output=json data.qed
map -s 100000 -l 100000 data.qed
map -s 64k -l 64k data.qed
map -s 64k -l 64k --output=json data.qed
map -s 4E data.qed
map -s 9E data.qed
map -s 8E data.qed
map -s 1.5k data.qed
map -s '' data.qed
map --start-offset 64k top.qed
map --max-length 64k top.qed
map --output human data.qed
map --output=json folder/far.qed
map folder/far.qed
map --output=json longer.qed
map -q data.qed
map --object secret,id=a,data=x data.qed
map -f raw data.qed
map -f raw --output=json data.qed
create -f qed -o help new.qed
create -f raw -o help new.raw
create -o help
create -o help new.raw
create -o '?' new.raw
create -f qed -o help,foo new.qed
create -f qed -o help= new.qed
create -f qed -o cluster_size=4k,help new.qed 1M
create -f foo -o help new.x
create -f qed -o help foo:bar
create -f qed file:new.qed 1M
create file:new.raw 1M
create -f qed json:{} 1M
create -f qed foo:bar 1M
create -f qed -o nocow=on new.qed 1M
create -o nocow=on new.raw 1M
create -o nocow=off new.raw 1M
create -o nocow=x new.raw 1M
create -o extent_size_hint=1M new.raw 1M
create -f qed -o extent_size_hint=1M new.qed 1M
create -o extent_size_hint=0 new.raw 1M
create -o extent_size_hint=x new.raw 1M
create -f qed -o preallocation=full new.qed 1M
create -f qed -o preallocation=off new.qed 1M
create -o preallocation=off new.raw 1M
create -o preallocation=metadata new.raw 1M
create -o preallocation= new.raw 1M
create -o size=1M new.raw
create -o size=x new.raw
create -o size= new.raw
create -o size new.raw
create -o backing_file=x new.raw 1M
create -o encryption=on new.raw 1M
create -e new.raw 1M
create -6 new.raw 1M
create -f qed -o encryption=on new.qed 1M
create -f qed -o encrypt.format=luks new.qed 1M
create -f qed -o compat=1.1 new.qed 1M
create -f qed -o cluster_size=2M new.qed 1M
create -f qed -o cluster_size=128M new.qed 1M
create -f qed -o cluster_size=2k new.qed 1M
create -f qed -o cluster_size=0 new.qed 1M
create -f qed -o cluster_size=4096,table_size=16 new.qed 1M
create -f qed -o cluster_size=4k,table_size=2 new.qed 5G
create -f qed -o cluster_size=4k,table_size=2 new.qed 4G
create -f qed -o table_size=0 new.qed 1M
create -f qed -o table_size=32 new.qed 1M
create -f qed new.qed 65T
create -f qed new.qed 64T
create -f qed new.qed 513
create -f qed new.qed 1b
create -f qed new.qed 1B
create -f qed new.qed 1kk
create -f qed new.qed ' 1M'
create -f qed new.qed '1M '
create -f qed new.qed '1 M'
create -f qed new.qed +1M
create -f qed new.qed .5M
create -f qed new.qed 1.M
create -f qed new.qed 0.5k
create -f qed new.qed 1.3k
create -f qed new.qed 1.5b
create -f qed new.qed 0x10M
create -f qed new.qed 0x
create -f qed new.qed 1E
create -f qed new.qed inf
create -f qed new.qed nan
create -f qed new.qed 1e6
create -f qed new.qed 1,5M
create -f qed new.qed 7E
create new.raw 1000
create new.raw 1
create new.raw 8191P
create new.raw 7E
create new.raw 9223372036854775807
create new.raw 9223372036854775808
create new.raw 18446744073709551615
create new.raw 0
create -b data.raw new.raw
create -f qed -b data.raw new.qed 2M
create -f qed -b data.qed new.qed 2M
create -f qed -u -b data.qed new.qed 2M
create -f qed -u -b data.qed new.qed
create -f qed -F qed new.qed 1M
create -f qed -o backing_fmt=qed new.qed 1M
create -f qed -F foo new.qed 1M
create -f qed -b data.qed -F raw new.qed
create -f qed -b file:data.qed -F qed new.qed
create -f qed -b 'json:{"driver":"qed","file.filename":"data.qed"}' -F qed new.qed
create -f qed -b 'json:{"driver":"qed","file.filename":"data.qed"}' new.qed
create -f qed -b ./data.qed -F qed new.qed
create -f qed -b $PWD/data.qed -F qed new.qed
create -f qed -b data.qed -F qed -o backing_file=empty.qed new.qed
create -f qed -b data.qed -F qed -o backing_fmt=raw new.qed
create -f qed -b data.qed -b over.qed -F qed new.qed
create -f qed -b over.qed -F qed new.qed
create -f qed -b top.qed -F qed new.qed
create -f qed -b longer.qed -F qed new.qed 1M
create -f qed -b folder -F raw new.qed 1M
create -f qed -b nonexistent -F raw -u new.qed
create -f qed -u new.qed 1M
create -f qed -u new.qed
create -f qed -b '' -F qed new.qed
create -F qed new.raw 1M
create -f qed -q -o help
create --quiet new.raw 1M
create --backing data.raw --backing-format raw -f qed new.qed
create --format qed new.qed 1M
create --object foo new.raw 1M
create -U new.raw 1M
create -p new.raw 1M
create --image-opts new.raw 1M
create data.raw 1M
create -f qed data.qed 1M
create -f qed -b data.qed -F qed over.qed
create -f qed a,b.qed 1M
create -f qed a:b.qed 1M
create 'new raw' 1M
create "new'raw" 1M
create '' 1M
create . 1M
create ./new.raw 1M
create -f qed -b 'x"y' -F qed -u new.qed 1M
create -f qed -b "it's" -F qed -u new.qed 1M
create -f qed -b 'a b' -F qed -u new.qed 1M
create -f qed -b a,b -F qed -u new.qed 1M
create -f qed -o backing_file=a,,b,backing_fmt=qed -u new.qed 1M
create -f qed -o 'cluster_size=64k' -o 'cluster_size=4k' new.qed 1M
create -f qed -o cluster_size=64k,cluster_size=4k new.qed 1M
create -f qed -o clustersize=4k new.qed 1M
create -f qed -o cluster-size=4k new.qed 1M
create -f qed -o 'cluster_size = 4k' new.qed 1M
create -f qed -o cluster_size=4k, new.qed 1M
create -f qed -o cluster_size=4k,,table_size=2 new.qed 1M
create new.raw 1M 2M
create new.raw -- 1M
create -- new.raw 1M
create new.raw -1
create -f QED new.qed 1M
create -f '' new.qed 1M
convert -S 0 data.qed new.raw
convert -S 512 data.qed new.raw
convert -S 64k data.qed new.raw
convert -S 16M data.qed new.raw
convert -S 17M data.qed new.raw
convert -S -1 data.qed new.raw
convert -n data.qed longer.qed
convert -n -O qed data.qed empty.qed
convert -n -O raw data.qed longer.qed
convert -n -O qed top.qed data.qed
convert -n -O qed -B data.qed -F qed over.qed empty.qed
convert -n -O qed -o backing_file=data.qed over.qed empty.qed
convert -n -O qed over.qed data.qed
convert -n -O qed data.qed over.qed
convert -n -O qed --target-is-zero -S 0 data.qed longer.qed
convert -n --target-is-zero -B data.qed -F qed -O qed over.qed empty.qed
convert --target-is-zero -n --target-image-opts data.qed driver=qed,file.filename=longer.qed
convert -C -O qed data.qed new.qed
convert -C -S 0 data.qed new.raw
convert -C -W -m 16 data.qed new.raw
convert -W data.qed new.raw
convert -m 1 data.qed new.raw
convert -m 16 data.qed new.raw
convert -m 0x4 data.qed new.raw
convert -m 010 data.qed new.raw
convert -m +4 data.qed new.raw
convert -m ' 4' data.qed new.raw
convert -m '' data.qed new.raw
convert -m -1 data.qed new.raw
convert -m 4k data.qed new.raw
convert -r 0 data.qed new.raw
convert -r 100M data.qed new.raw
convert -r -1 data.qed new.raw
convert -r 9E data.qed new.raw
convert -r 1 -r 100M data.qed new.raw
convert --salvage -O qed wrong.qed new.qed
convert --salvage wrong.qed new.raw
convert wrong.qed new.raw
convert --bitmaps -O qed data.qed new.qed
convert --bitmaps --skip-broken-bitmaps -O qed data.qed new.qed
convert --skip-broken-bitmaps data.qed new.raw
convert -l snapshot.id=1 data.qed new.raw
convert -l snapshot.name=foo -O qed data.qed new.qed
convert -l snapshot.id=1,snapshot.name=foo data.qed new.raw
convert -l snapshot.foo=1 data.qed new.raw
convert -l '' data.qed new.raw
convert -l foo data.qed data.raw new.raw
convert -s foo data.qed new.raw
convert -U -O qed data.qed new.qed
convert -t none -O qed data.qed new.qed
convert -t directsync data.qed new.raw
convert -T unsafe data.qed new.raw
convert -T directsync data.qed new.raw
convert -t '' data.qed new.raw
convert -B data.qed -O qed over.qed new.qed
convert -B nonexistent -F qed -O qed over.qed new.qed
convert -B data.raw -F raw -O qed data.raw new.qed
convert -B data.raw -F foo -O qed data.raw new.qed
convert -B data.qed -F raw -O qed over.qed new.qed
convert -B longer.qed -F qed -O qed data.qed new.qed
convert -B empty.qed -F qed -O qed longer.qed new.qed
convert -B '' -O qed data.qed new.qed
convert -F qed -O qed data.qed new.qed
convert -o backing_file=data.qed -F qed -O qed over.qed new.qed
convert -o backing_file=empty.qed -B data.qed -F qed -O qed over.qed new.qed
convert -o backing_fmt=raw -B data.qed -F qed -O qed over.qed new.qed
convert -B data.qed -F qed -c -O qed over.qed new.qed
convert -c -O raw data.qed new.raw
convert -c -S 0 -O qed data.qed new.qed
convert -c --target-is-zero -n data.qed longer.qed
convert -O raw -o preallocation=full data.qed new.raw
convert -O raw -o preallocation=falloc data.qed new.raw
convert -O raw -o preallocation=foo data.qed new.raw
convert -O raw -o size=2M data.qed new.raw
convert -O raw -o size=x data.qed new.raw
convert -O raw -o nocow=on data.qed new.raw
convert -O qed -o cluster_size=x data.qed new.qed
convert -O qed -o cluster_size data.qed new.qed
convert -o help
convert -o help data.qed
convert -o help data.qed new.raw
convert -O qed -o help data.qed new.qed
convert -O foo -o help
convert --image-opts driver=qed,file.filename=data.qed driver=raw,file.filename=data.raw new.raw
convert --image-opts foo new.raw
convert --image-opts driver=raw,offset=64k,size=64k,file.filename=data.raw new.raw
convert 'json:{"driver":"qed","file.filename":"over.qed","backing":null}' new.raw
convert -n -O raw data.raw 'json:{"driver":"raw","file":{"driver":"file","filename":"data.raw"}}'
convert -n -O qed empty.qed 'json:{"driver":"qed","file":{"driver":"file","filename":"data.qed"}}'
convert -n -O raw data.qed 'json:{"driver":"raw","size":"64k","file.filename":"data.raw"}'
convert -n -O raw data.qed 'json:{"driver":"raw","file.filename":"new.raw"}'
convert -n data.qed null-co://
convert -n -S 0 data.qed null-co://
convert --target-image-opts -n data.qed foo
convert --target-image-opts -n data.qed driver=foo
convert --object secret,id=a,data=x data.qed new.raw
convert --object foo data.qed new.raw
convert -p -O qed data.qed new.qed
convert -q data.qed new.raw
convert -q nonexistent new.raw
convert file:data.qed file:new.raw
convert data.qed file:new.raw
convert data.qed json:{}
convert data.qed foo:bar
convert data.qed folder
convert data.qed folder/new.raw
convert over.qed data.qed
convert data.raw over.qed
convert -f qed data.raw new.raw
convert -f raw data.raw new.raw
convert -f raw data.raw data.qed new.raw
convert data.raw nonexistent new.raw
convert data.raw new.raw new2.raw
convert -O qed longer.qed top.qed new.qed
convert -O raw longer.qed data.qed new.raw
convert --salvage -C data.qed new.raw
convert -e data.qed new.raw
convert -6 data.qed new.raw
convert -o '' data.qed new.raw
convert -o , data.qed new.raw
convert -O qed -f qed -pq -S4k -m4 -W data.qed new.qed
convert -WO qed data.qed new.qed
convert -n data.qed folder
convert -n data.qed longer.raw
convert -x
compare -p data.qed over.qed
compare -p -q data.qed over.qed
compare -s over.qed data.qed
compare -s data.raw data.raw
compare -s empty.qed data.raw
compare -f qed data.raw data.qed
compare -F qed data.qed data.raw
compare -f raw data.raw data.raw
compare -T none data.qed data.qed
compare -T '' data.qed data.qed
compare -U -s data.qed data.qed
compare -t none data.qed data.qed
compare -q nonexistent data.qed
compare wrong.qed data.qed
compare data.qed wrong.qed
compare -s wrong.qed data.qed
compare data.qed ''
compare --image-opts foo bar
compare --image-opts driver=foo driver=qed
compare --image-opts -F qed data.qed data.qed
compare --image-opts -F qed driver=qed,file.filename=data.qed driver=qed,file.filename=data.qed
compare file:data.qed data.qed
compare --object secret,id=a,data=x data.qed data.qed
compare --object foo data.qed data.qed
compare -x data.qed data.qed
compare --strict data.qed data.qed
compare -s longer.qed empty.qed
compare -s top.qed over.qed
compare top.qed over.qed
compare over.qed empty.qed
compare data.raw longer.qed
compare 'json:{"driver":"raw","file.filename":"data.raw"}' data.raw
resize -f qed data.qed +512
resize -f qed data.qed 1M
resize data.qed +1k
resize data.qed +100
resize data.qed 1000000
resize data.qed +0
resize data.qed -0
resize data.qed -f raw 2M
resize data.qed 2M -q
resize data.qed -q 2M
resize -q data.qed +x
resize -q data.qed
resize -f raw data.raw +1
resize -f raw data.raw 600000
resize -f raw data.raw 1.5M
resize -f raw data.raw -1
resize -f raw --shrink data.raw -1
resize -f raw --shrink data.raw -512k
resize -f raw --shrink data.raw 0
resize -f raw --shrink data.raw -513k
resize -f raw --preallocation=off data.raw 1M
resize -f raw --preallocation falloc data.raw +1M
resize -f raw --preallocation=full data.raw 512k
resize -f raw --preallocation= data.raw 1M
resize --preallocation=falloc data.qed 2M
resize --preallocation=metadata data.qed 2M
resize --preallocation=off data.qed 2M
resize data.qed 64T
resize data.qed 65T
resize data.qed 4G
resize data.qed 5G
resize -f raw data.raw 7E
resize -f raw data.raw 8E
resize -f raw data.raw +8E
resize -f raw data.raw 9223372036854775807
resize --image-opts -f qed data.qed 2M
resize --image-opts driver=raw,file.filename=data.raw 2M
resize --image-opts driver=raw,offset=4096,file.filename=data.raw +1M
resize --image-opts driver=raw,offset=5000,file.filename=data.raw 2M
resize --shrink --image-opts driver=raw,offset=4096,file.filename=data.raw -64k
resize --image-opts driver=raw,size=64k,file.filename=data.raw +1M
resize --image-opts driver=raw,offset=4096,size=64k,file.filename=data.raw 2M
resize --image-opts driver=qed,file.filename=data.qed,read-only=on 2M
resize -U data.qed 2M
resize --object secret,id=a,data=x data.qed 2M
resize --object foo data.qed 2M
resize data.qed ++1M
resize data.qed +-1M
resize data.qed '+ 1M'
resize data.qed 1e3
resize data.qed 2MB
resize data.qed 0x200000
resize top.qed 4M
resize over.qed 512k
resize --shrink over.qed 512k
resize --shrink data.qed 512k
resize '' 1M
resize folder 1M
rebase -b data.qed -F qed -f qed over.qed
rebase -b '' -F qed over.qed
rebase -b '' -F raw over.qed
rebase -u -b '' -F qed over.qed
rebase -u -b nonexistent over.qed
rebase -u -b nonexistent -F raw over.qed
rebase -u -b nonexistent -F qed nonexistent
rebase -u -F qed over.qed
rebase -F qed over.qed
rebase -u -b data.qed -F qed data.raw
rebase -u -b data.qed -F qed -f raw data.raw
rebase -b data.qed -F qed data.raw
rebase -b '' data.raw
rebase -b '' data.qed
rebase -b '' -u data.qed
rebase -b data.raw -F raw data.qed
rebase -b folder -F raw over.qed
rebase -b data.raw -F qed over.qed
rebase -b top.qed -F qed over.qed
rebase -b ../data.qed -F qed folder/far.qed
rebase -b ../empty.qed -F qed folder/far.qed
rebase -b data.qed -F qed folder/far.qed
rebase -b $PWD/data.qed -F qed over.qed
rebase -b ./data.qed -F qed over.qed
rebase -b file:data.qed -F qed over.qed
rebase -b 'json:{"driver":"qed","file.filename":"data.qed"}' -F qed over.qed
rebase -c -b data.qed -F qed over.qed
rebase -t none -T none -b data.qed -F qed over.qed
rebase -t unsafe -b empty.qed -F qed over.qed
rebase -t writethrough -b empty.qed -F qed over.qed
rebase -U -b empty.qed -F qed over.qed
rebase -U -u -b empty.qed -F qed over.qed
rebase --image-opts -b empty.qed -F qed driver=qed,file.filename=over.qed
rebase --image-opts -f qed -b empty.qed -F qed over.qed
rebase -u --image-opts -b empty.qed -F qed driver=qed,file.filename=over.qed,backing.driver=qed
rebase --object secret,id=a,data=x -b empty.qed -F qed over.qed
rebase -p -u -b data.qed -F qed over.qed
rebase -p -b '' over.qed
rebase -pq -b '' over.qed
rebase -b longer.qed -F qed over.qed
rebase -b empty.qed -F qed data.qed
rebase -b x
rebase -b data.qed -b empty.qed -F qed over.qed
rebase -f qed -F qed -b data.qed nonexistent
rebase -b data.raw -F raw -u data.qed
rebase --backing data.qed -F qed over.qed
commit -d -p over.qed
commit -f qed over.qed
commit -b data.qed -d top.qed
commit -b '' top.qed
commit -b over.qed -d top.qed
commit -b ./over.qed top.qed
commit -b folder top.qed
commit -b data.raw top.qed
commit -t none -d over.qed
commit -t unsafe -d over.qed
commit -t directsync over.qed
commit -r 0 -d over.qed
commit -r -1 over.qed
commit -r 10E over.qed
commit -U over.qed
commit --image-opts -f qed over.qed
commit --image-opts driver=qed,file.filename=over.qed
commit --image-opts -b data.qed driver=qed,file.filename=top.qed
commit --object secret,id=a,data=x -d over.qed
commit -q over.qed
commit top.qed
commit -q -b data.qed top.qed
commit folder/far.qed
commit -d folder/far.qed
commit -b ../data.qed folder/far.qed
commit -b data.qed folder/far.qed
commit file:over.qed
commit 'json:{"driver":"qed","file.filename":"over.qed"}'
commit -b data.qed 'json:{"driver":"qed","file.filename":"top.qed"}'
commit empty.qed
commit --drop over.qed
commit ''
measure -O qed --size 1M
measure -O qed --size 0
measure -O raw --size 0
measure -O qed data.raw
measure -O qed -o cluster_size=4k data.qed
measure -O qed -o cluster_size=x --size 1M
measure -O raw -o size=2M --size 1M
measure -O raw -o size=2M data.qed
measure -O raw -o preallocation=full --size 1M
measure -O raw -o preallocation=foo --size 1M
measure -O raw -o nocow=on --size 1M
measure -o help
measure -O raw -o help data.qed
measure --size 1.5M
measure --size 1000
measure --size ''
measure --size -1
measure --size 9E
measure --size 7E
measure --size 8191P
measure --size 9223372036854775807
measure --size 1M --size 2M
measure -f qed data.qed
measure -f raw data.qed
measure -f qed data.raw
measure -U data.qed
measure over.qed
measure top.qed
measure longer.qed
measure --output=json --size 1M
measure --output=json -O qed data.qed
measure --image-opts driver=raw,file.filename=data.raw
measure --image-opts -f qed data.qed
measure --image-opts foo
measure -l snapshot.id=1 data.qed
measure -l snapshot.foo=1 data.qed
measure -l foo nonexistent
measure --object secret,id=a,data=x data.qed
measure --object foo data.qed
measure file:data.qed
measure 'json:{"driver":"qed","file.filename":"data.qed"}'
measure -o , data.qed
measure -o size=x data.qed
measure wrong.qed
"""
"""Arguments of `qemu-img`."""

IO_PROGRAM = r"""
-c "read -a 0 4k" data.qed
-c "read -aP 1 64k 4k" data.qed
-c "read -b 0 512" data.qed
-c "read -bq 0 4k" data.qed
-c "read -P 1 -s -1 64k 4k" data.qed
-c "read -P 0x100 0 1" data.qed
-c "read -P 0xff 0 1" data.qed
-c "read -P 08 0 1" data.qed
-c "read -P '' 0 1" data.qed
-c "read -P 1k 0 1" data.qed
-c "read  -q   0    4k" data.qed
-c "read -q 0 4k ;" data.qed
-c "read -q 0 4k # x" data.qed
-c "read +1 1" data.qed
-c "read 1. 1" data.qed
-c "read 1.k 1" data.qed
-c "read .5k 1" data.qed
-c "read 0x1k 1" data.qed
-c "read 1kk 1" data.qed
-c "read 1b 1b" data.qed
-c "read 1B 1K" data.qed
-c "read 1e1 1" data.qed
-c "read -qP1 -s0 -l0 64k 4k" data.qed
-c "read -P 1 -l 8k 64k 4k" data.qed
-c "read -qq 0 4k" data.qed
-c "read -vv 0 4" data.qed
-c "read -v 0 0" data.qed
-c "read -v 65530 12" data.qed
-c "read -v 66560 33" data.qed
-c "read -v 0 100" data.raw
-c "read -q --foo 0 4k" data.qed
-c "read -q -- 0 4k" data.qed
-c "write -P 5 -- 0 4k" -c "read -P 5 0 4k" data.qed
-c "write -q 0 512" -c "read -P 0xcd 0 512" data.qed
-c "write -zq 0 1M" -c map data.qed
-c "write -zu 0 1M" -c map data.qed
-c "write -znu 0 64k" data.qed
-c "write -znq 0 64k" data.raw
-c "write -zf 0 64k" data.qed
-c "write -zP1 0 4k" data.qed
-c "write -cq 0 4k" data.qed
-c "write -cf 0 4k" data.qed
-c "write -bz 0 4k" data.qed
-c "write -bf 0 4k" data.qed
-c "write -s pattern -z 0 4k" data.qed
-c "write -s pattern 0 5" -c "read -v 0 16" data.qed
-c "write -s pattern -q 10 100" -c "read -v 0 128" data.qed
-c "write -s folder 0 5" data.qed
-c "write -C -P 1 0 1M" data.qed
-c "write -n 0 4k" data.qed
-c "write -u 0 4k" data.qed
-c "write -nz 0 99999M" data.qed
-c "write -z 0 2G" data.qed
-c "write 0 2147483137" data.qed
-c "writev -P 5 0 1k 1k" -c "read -P 5 0 2k" data.qed
-c "writev -q -f 0 1k" data.qed
-c "writev -C 0 1k 2k 3k" data.qed
-c "writev -x 0 1k" data.qed
-c "writev -P x 0 1k" data.qed
-c "writev -P 5 0" data.qed
-c "readv -v 64k 16 16" data.qed
-c "readv -qP 1 64k 1k 1k" data.qed
-c "readv -P x 0 1k" data.qed
-c "readv 0 0" data.qed
-c "aio_write -q 0 4k" -c "aio_read -q 0 4k" -c aio_flush data.qed
-c "aio_write -z -q 0 4k" -c aio_flush data.qed
-c "aio_write -zu 0 64k" -c aio_flush data.qed
-c "aio_write -zf 0 64k" -c aio_flush data.qed
-c "aio_write -zP 1 0 64k" -c aio_flush data.qed
-c "aio_write -C 0 4k" -c aio_flush data.qed
-c "aio_write -n -z 0 4k" -c aio_flush data.qed
-c "aio_read -qv 64k 16" -c aio_flush data.qed
-c "aio_read -P 1 64k 1k" -c aio_flush data.qed
-c "aio_read -P 2 64k 1k" -c aio_flush data.qed
-c "aio_read -i 0 4k" -c aio_flush data.qed
-c "aio_write -i 0 4k" -c aio_flush data.qed
-c "aio_write 2M 4k" -c aio_flush data.qed
-c "aio_write -P x 0 4k" data.qed
-c "discard 0 1M" -c map data.raw
-c "discard -x 0 1M" data.qed
-c "discard 0 4G" data.qed
-c "discard -1 4k" data.qed
-c "discard 1 1" data.qed
-c "truncate 1000" data.qed
-c "truncate 3M" -c length data.qed
-c "truncate 1M" -c length data.raw
-c "truncate -m falloc 1M" -c length data.raw
-c "truncate -m metadata 1M" -c length data.raw
-c "truncate -m full 1M" -c length data.raw
-c "truncate 4k" -c length data.raw
-c "truncate 1000" -c length data.raw
-c "truncate -m" data.qed
-c "truncate -x 1M" data.qed
-c "truncate 10E" data.qed
-c "length x" data.qed
-c "alloc 0 1M" top.qed
-c "alloc 1M 1M" top.qed
-c "alloc 60k" over.qed
-c "alloc -1" data.qed
-c "alloc 1 1" data.qed
-c "alloc 0 512" data.raw
-c "map" data.raw
-c "map" empty.qed
-c "map" longer.qed
-c "info" over.qed
-c "info" data.raw
-c "info x" data.qed
-c "flush x" data.qed
-c "sleep" data.qed
-c "sleep -1" data.qed
-c "sleep 0" data.qed
-c "sleep 1k" data.qed
-c "sleep 0x1" data.qed
-c "sigraise" data.qed
-c "sigraise x" data.qed
-c "sigraise 0" data.qed
-c "sigraise -1" data.qed
-c "quit 1" data.qed
-c "q" -c length data.qed
-c "close x" data.qed
-c "o over.qed" data.qed
-c c -c l data.qed
-c "remove_break A" data.qed
-c "resume A" data.qed
-c "open -r -U data.qed" -c length
-c "open -rn data.qed" -c "read 0 4k"
-c "open -C over.qed" -c "read 64k 4k" -c map
-c "open -C -r over.qed" -c "read 64k 4k"
-c "open -d unmap data.qed" -c length
-c "open -d on data.qed" -c length
-c "open -d off data.qed" -c length
-c "open -d ignore data.qed" -c length
-c "open -t none data.qed" -c length
-c "open -t unsafe data.qed" -c length
-c "open -i threads data.qed" -c length
-c "open -i foo data.qed" -c length
-c "open -i native data.qed" -c length
-c "open -k -n data.qed" -c length
-c "open -o read-only=on data.qed" -c "write 0 1"
-c "open -o driver=qed -o file.filename=data.qed" -c length
-c "open -o driver=qed,file=data.qed" -c length
-c "open -o foo data.qed" -c length
-c "open -r -s data.qed" -c "write 0 1"
-c "open --foo data.qed"
-c "open -t" -c length
-c "open 'data.qed'" -c length
-c "open -g data.qed" -c length
-C -c "read 64k 4k" -c map over.qed
-C -r -c "read 64k 4k" over.qed
-s -r -c "write 0 4k" data.qed
-s -f raw -c "write -P 3 0 4k" -c "read -P 3 0 4k" data.raw
-s -f raw -c "write 0 4k" -c map data.raw
-n -t unsafe -c "read 0 4k" data.qed
-t unsafe -n -c "read 0 4k" data.qed
-t writethrough -c "read 0 4k" data.qed
-t directsync -c "write 0 4k" data.qed
-t unsafe -c "write 0 4k" data.qed
-i native -c "read 0 4k" data.qed
-i native -n -c "read 0 4k" data.qed
-i io_uring -c "read 0 4k" data.qed
-d ignore -f raw -c "discard 0 64k" data.raw
-d off -f raw -c "discard 128k 64k" -c "read -P 3 128k 4k" data.raw
-d on -c length data.qed
-m -c "write 0 4k" data.qed
--cmd length data.qed
--read-only -c "write 0 4k" data.qed
--snapshot -c "write 0 4k" data.qed
--nocache -c "read 0 4k" data.qed
--copy-on-read -c "read 0 4k" over.qed
--misalign -c "read 0 4k" data.qed
--native-aio -c "read 0 4k" data.qed
--aio=threads -c "read 0 4k" data.qed
--cache=none -c "read 0 4k" data.qed
--cache none -c "read 0 4k" data.qed
--discard=unmap -c "read 0 4k" data.qed
--force-share -r -c "read 0 4k" data.qed
--format=qed -c "read 0 4k" data.qed
--format qed -c "read 0 4k" data.raw
--object secret,id=a,data=x -c length data.qed
--object foo -c length data.qed
--object throttle-group,id=a -c length data.qed
--image-opts -c length foo
--image-opts -c length driver=foo
--image-opts -c length driver=raw,offset=4k,size=8k,file.filename=data.raw
-c "write -P 0 512k 64k" -c map --image-opts driver=qed,file.filename=data.qed,detect-zeroes=on
-c "write -P 0 512k 64k" -c map --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap
-c "read 0 4k" --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap,discard=ignore
-c "read 0 4k" --image-opts driver=qed,file.filename=data.qed,detect-zeroes=foo
-c "discard 0 64k" -c map --image-opts driver=raw,file.filename=data.raw,discard=ignore
-d ignore -c "discard 0 64k" -c map --image-opts driver=raw,file.filename=data.raw,discard=unmap
-c "open -o detect-zeroes=on data.qed" -c "write -P 0 512k 64k" -c map
-c "open -o detect-zeroes=foo data.qed"
-c "open -o discard=foo data.qed"
-c "open -d ignore -o detect-zeroes=unmap data.qed"
-c "open -C -o detect-zeroes=on over.qed" -c "write -P 0 512k 64k" -c "read -P 0 512k 64k"
-c "open -o backing.detect-zeroes=on,backing.node-name=b over.qed" -c "read -P 1 64k 64k"
-c "open -o backing.discard=foo over.qed"
-c "reopen -o detect-zeroes=on" -c "write -P 0 512k 64k" -c map data.qed
-c "reopen -o detect-zeroes=on" -c "reopen -r" -c "reopen -w" -c "write -P 0 512k 64k" data.qed
-c "reopen -o detect-zeroes=on" -c "reopen -c none" -c "write -P 0 512k 64k" -c map data.qed
-c "reopen -o detect-zeroes=unmap" -c "reopen -o discard=ignore" data.qed
-c "reopen -o detect-zeroes=on" -c "reopen -o discard=ignore" -c "write -P 0 512k 64k" data.qed
-c "reopen -o detect-zeroes=foo" -c length data.qed
-c "reopen -o discard=foo" -c length data.qed
-c "reopen -o discard=ignore" -c "discard 0 64k" -c map -f raw data.raw
-d ignore -c "reopen -o discard=unmap" -c "discard 0 64k" -c map -f raw data.raw
-c "reopen -o auto-read-only=on" -c "write 0 4k" data.qed
-c "reopen -o auto-read-only=foo" data.qed
-c "reopen -o node-name=a" data.qed
-c "reopen -o driver=qed,file.driver=file,file.filename=data.qed" data.qed
-c "reopen -o driver=raw" data.qed
-c "reopen -o file.detect-zeroes=on,file.discard=unmap" data.qed
-c "reopen -o file.locking=off" data.qed
-c "reopen -o file=x" data.qed
-c "reopen -o backing.detect-zeroes=on" -c length data.qed
-c "reopen -o backing.detect-zeroes=on" -c length over.qed
-c "reopen -o backing=" -c "read -P 1 64k 4k" over.qed
-c "reopen -o detect-zeroes.a=on" data.qed
-s -c "write -P 9 0 4k" -c "reopen -o detect-zeroes=on" -c "read -P 9 0 4k" data.qed
-c length 'json:{"driver":"qed","file.filename":"data.qed"}'
-c length file:data.qed
-c length foo:bar
-c length folder
-c length ''
-c "reopen -c foo" -c length data.qed
-c "reopen -o read-only=on" -c "write 0 1" data.qed
-c "reopen -r" -c "reopen -w" -c "write -q 0 1" data.qed
-c "reopen -w" -c "write 0 512" -r data.qed
-c "reopen -c unsafe" -c "write -q 0 512" data.qed
-c "reopen -c writethrough" -c "write -q 0 512" data.qed
-c "reopen -o cache.direct=on" -c "read -q 0 512" data.qed
-c "reopen -c none -o cache.direct=off" data.qed
-c "reopen -r -o read-only=off" data.qed
"""
"""Arguments of `qemu-io`."""

_EMPTY = "said plainly"
_FOLDER = "block devices are welcome, too"
_UNWRITTEN = "nothing is written: no guess can do harm"
_NO_WARNING = "the empty name of no backing file is here to stay, and nothing warns of it"
_OWN_WORDS = "our own words"
_NAME_ONCE = "the file that is not there is named once"
_NAME_TWICE = "the file that could not be opened is named by the error itself"
_HELP = "preallocation belongs to raw images, not to files"
_ANNOUNCED = "a new image is announced when it is there"
_REMOVED = "a target that is not complete is removed"
_NO_SNAPSHOTS = "there is no device whose name could be told"

_QED_FILE_HELP = """\
Supported options:
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  cluster_size=<size>    - Cluster size (in bytes)
  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable
  nocow=<bool (on/off)>  - Turn off copy-on-write (valid only on btrfs)
  size=<size>            - Virtual disk size
  table_size=<size>      - L1/L2 table size (in clusters)
"""
_RAW_HELP = """\
Supported raw options:
  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)
  size=<size>            - Virtual disk size

Name the target as well to see the options that files have.
"""
_QED_HELP = """\
Supported qed options:
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  cluster_size=<size>    - Cluster size (in bytes)
  size=<size>            - Virtual disk size
  table_size=<size>      - L1/L2 table size (in clusters)

Name the target as well to see the options that files have.
"""

IMG_DIFFERENCES = {
    "dd bs=64k count=3 skip=1 if=data.qed of=new.raw": Difference(
        "count= counts blocks behind those that were skipped, as dd(1) does", files=("new.raw",)
    ),
    "dd bs=64k count=1 skip=3 if=data.qed of=new.raw": Difference(
        "count= counts blocks behind those that were skipped, as dd(1) does",
        complaint="",
        files=("new.raw",),
    ),
    "dd if= of=new.raw": Difference(_EMPTY, complaint="TOOL: The file name is empty"),
    "dd if=data.qed of=": Difference(_EMPTY, complaint="TOOL: The file name is empty"),
    "dd if=data.qed of=data.qed": Difference(
        "said plainly", complaint="TOOL: 'data.qed' is part of the source and cannot be the target"
    ),
    "dd if=data.qed of=folder": Difference(
        _FOLDER,
        complaint=(
            "TOOL: folder: error while creating output image: Could not create image: "
            "Could not open 'folder': Is a directory"
        ),
    ),
    "dd bs=512 skip=3 count=2 if=data.raw of=new.raw": Difference(
        "count= counts blocks behind those that were skipped, as dd(1) does",
        complaint="",
        files=("new.raw",),
    ),
    "dd if=data.raw of=json:{}": Difference(
        "options describe images that exist", complaint="TOOL: 'json:{}' is not the name of a file"
    ),
    "dd if=data.raw of=/dev/null": Difference(
        _FOLDER,
        complaint=(
            "TOOL: /dev/null: error while creating output image: Could not create image: "
            "Could not open '/dev/null': The file is neither a regular file nor a block "
            "device"
        ),
    ),
    "snapshot data.raw": Difference(_UNWRITTEN, complaint=""),
    "snapshot -c a data.raw": Difference(
        _UNWRITTEN, complaint="TOOL: Could not create snapshot 'a': -95 (Operation not supported)"
    ),
    "snapshot -a a data.raw": Difference(
        _UNWRITTEN,
        complaint=("TOOL: Could not apply snapshot 'a': Block driver does not support snapshots"),
    ),
    "snapshot -d a data.raw": Difference(
        _UNWRITTEN, complaint="TOOL: Could not delete snapshot 'a': snapshot not found"
    ),
    "bitmap --add data.qed foo": Difference(
        "a file is known by its name, a node is not",
        complaint=(
            "TOOL: Operation add on bitmap foo failed: Can't store persistent bitmaps to "
            "data.qed: Operation not supported"
        ),
    ),
    "bitmap --add data.raw foo": Difference(
        _UNWRITTEN,
        complaint=(
            "TOOL: Operation add on bitmap foo failed: Can't store persistent bitmaps to "
            "data.raw: Operation not supported"
        ),
    ),
    "bitmap --add -g 64k data.qed foo": Difference(
        "a file is known by its name, a node is not",
        complaint=(
            "TOOL: Operation add on bitmap foo failed: Can't store persistent bitmaps to "
            "data.qed: Operation not supported"
        ),
    ),
    "bitmap --image-opts --add driver=qed,file.filename=data.qed foo": Difference(
        "a file is known by its name, a node is not",
        complaint=(
            "TOOL: Operation add on bitmap foo failed: Can't store persistent bitmaps to "
            "data.qed: Operation not supported"
        ),
    ),
    "bitmap -f raw --add data.qed foo": Difference(
        "a file is known by its name, a node is not",
        complaint=(
            "TOOL: Operation add on bitmap foo failed: Can't store persistent bitmaps to "
            "data.qed: Operation not supported"
        ),
    ),
    "amend -o foo=1 data.raw": Difference(
        _UNWRITTEN, complaint="TOOL: Format driver 'raw' does not support option amendment"
    ),
    'info json:{"driver":"qed","file.filename":"data.qed"}': Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'json:{driver:qed,file.filename:data.qed}': Could not "
            "parse the JSON options"
        ),
    ),
    'convert -n -O raw data.qed \'json:{"driver":"raw","file.filename":"new.raw"}\'': Difference(
        _NAME_ONCE, complaint="TOOL: Could not open 'new.raw': No such file or directory"
    ),
    "map --image-opts driver=qed,file.filename=over.qed,backing.discard=foo": Difference(
        _NAME_TWICE,
        complaint=(
            "TOOL: Could not open 'over.qed': Could not open backing file: Could not open"
            " 'data.qed': Invalid discard option"
        ),
    ),
    "map --image-opts driver=qed,file.filename=over.qed,"
    "node-name=a,backing.node-name=a": Difference(
        _NAME_TWICE,
        complaint=(
            "TOOL: Could not open 'over.qed': Could not open backing file: Could not open"
            " 'data.qed': Duplicate nodes with node-name='a'"
        ),
    ),
    "info --image-opts driver=qed,file.filename=over.qed,backing=": Difference(
        _NO_WARNING, complaint=""
    ),
    "map --image-opts driver=qed,file.filename=over.qed,backing=": Difference(
        _NO_WARNING, complaint=""
    ),
    "commit --image-opts driver=qed,file.filename=over.qed,backing=": Difference(
        _NO_WARNING, complaint="TOOL: Image does not have a backing file"
    ),
    "convert -O raw --image-opts driver=qed,file.filename=over.qed,backing= new.raw": Difference(
        _NO_WARNING, complaint=""
    ),
    'convert \'json:{"driver":"qed","file.filename":"over.qed","backing":""}\' new.raw': Difference(
        _NO_WARNING, complaint=""
    ),
    "info --image-opts driver=qed,foo=1,file.filename=data.qed": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'driver=qed,foo=1,file.filename=data.qed': Invalid "
            "parameter 'foo'"
        ),
    ),
    "info --image-opts driver=qed,file.filename=data.qed,file.foo=1": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'driver=qed,file.filename=data.qed,file.foo=1': Invalid "
            "parameter 'foo'"
        ),
    ),
    "info --backing-chain --image-opts driver=qed,file.filename=over.qed,"
    "backing.driver=foo,backing.x=1": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'driver=qed,file.filename=over.qed,backing.driver=foo,"
            "backing.x=1': Invalid parameter 'backing.driver'"
        ),
    ),
    "info --image-opts driver=qed,file.filename=over.qed,backing.driver=raw,"
    "backing.file.filename=x.raw": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'driver=qed,file.filename=over.qed,backing.driver=raw,"
            "backing.file.filename=x.raw': Invalid parameter 'backing.driver'"
        ),
    ),
    "rebase -u --image-opts -b empty.qed -F qed driver=qed,file.filename=over.qed,"
    "backing.driver=qed": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open 'driver=qed,file.filename=over.qed,backing.driver=qed':"
            " Invalid parameter 'backing.driver'"
        ),
    ),
    "info json:": Difference(
        _OWN_WORDS, complaint="TOOL: Could not open 'json:': Could not parse the JSON options"
    ),
    "info json:{": Difference(
        _OWN_WORDS, complaint="TOOL: Could not open 'json:{': Could not parse the JSON options"
    ),
    'info \'json:{"driver":"qed","file.filename":"data.qed","foo":1}\'': Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: Could not open "
            '\'json:{"driver":"qed","file.filename":"data.qed","foo":1}\': Invalid parameter '
            "'foo'"
        ),
    ),
    "info file:///data.qed": Difference(
        _NAME_ONCE, complaint="TOOL: Could not open '///data.qed': No such file or directory"
    ),
    "info file:nonexistent": Difference(
        _NAME_ONCE, complaint="TOOL: Could not open 'nonexistent': No such file or directory"
    ),
    "check --output=json file:data.qed": Difference(
        "the file is named, however it was written",
        stdout=(
            "{\n"
            '    "total-clusters": 256,\n'
            '    "check-errors": 0,\n'
            '    "allocated-clusters": 18,\n'
            '    "filename": "data.qed",\n'
            '    "format": "qed",\n'
            '    "fragmented-clusters": 1\n'
            "}\n"
        ),
    ),
    "check --output=json -r all leaky.qed": Difference(
        "leaks can be given back",
        code=0,
        stdout=(
            "{\n"
            '    "total-clusters": 256,\n'
            '    "check-errors": 0,\n'
            '    "leaks-fixed": 2,\n'
            '    "allocated-clusters": 18,\n'
            '    "filename": "leaky.qed",\n'
            '    "format": "qed",\n'
            '    "fragmented-clusters": 1\n'
            "}\n"
        ),
        complaint="",
    ),
    "create -f qed -o help new.qed": Difference(_HELP, stdout=_QED_FILE_HELP),
    "create -o help": Difference(_HELP, stdout=_RAW_HELP),
    "create -f qed -o help,foo new.qed": Difference(_HELP, stdout=_QED_FILE_HELP),
    "create -f qed -o cluster_size=4k,help new.qed 1M": Difference(_HELP, stdout=_QED_FILE_HELP),
    "create -f qed json:{} 1M": Difference(
        "options describe images that exist",
        complaint="TOOL: json:{}: 'json:{}' is not the name of a file",
    ),
    "create -f qed -o preallocation=full new.qed 1M": Difference(
        "QED cannot preallocate, and says so",
        code=1,
        stdout="",
        complaint="TOOL: new.qed: Unsupported preallocation mode 'full' for QED",
        files=("new.qed",),
    ),
    "create -o preallocation=metadata new.raw 1M": Difference(
        _ANNOUNCED,
        stdout="",
        complaint="TOOL: new.raw: Unsupported preallocation mode 'metadata'",
        files=("new.raw",),
    ),
    "create -o preallocation= new.raw 1M": Difference(
        _ANNOUNCED, stdout="", complaint="TOOL: new.raw: Unsupported preallocation mode ''"
    ),
    "create -f qed -o cluster_size=128M new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed -o cluster_size=2k new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed -o cluster_size=0 new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed -o cluster_size=4k,table_size=2 new.qed 5G": Difference(
        _ANNOUNCED,
        stdout="",
        complaint=(
            "TOOL: new.qed: QED image size must be a multiple of 512 and no more than "
            "4294967296 bytes with this cluster and table size; 5368709120 were asked for"
        ),
        files=("new.qed",),
    ),
    "create -f qed -o table_size=0 new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed -o table_size=32 new.qed 1M": Difference(
        _ANNOUNCED, stdout="", files=("new.qed",)
    ),
    "create -f qed new.qed 65T": Difference(
        _ANNOUNCED,
        stdout="",
        complaint=(
            "TOOL: new.qed: QED image size must be a multiple of 512 and no more than "
            "70368744177664 bytes with this cluster and table size; 71468255805440 were "
            "asked for"
        ),
        files=("new.qed",),
    ),
    "create -f qed new.qed 513": Difference(
        "told is the size the disk has",
        stdout="Formatting 'new.qed', fmt=qed size=1024 cluster_size=65536\n",
    ),
    "create -f qed new.qed 1b": Difference(
        "told is the size the disk has",
        stdout="Formatting 'new.qed', fmt=qed size=512 cluster_size=65536\n",
    ),
    "create -f qed new.qed 1B": Difference(
        "told is the size the disk has",
        stdout="Formatting 'new.qed', fmt=qed size=512 cluster_size=65536\n",
    ),
    "create -f qed new.qed 1.3k": Difference(
        "told is the size the disk has",
        stdout="Formatting 'new.qed', fmt=qed size=1536 cluster_size=65536\n",
    ),
    "create -f qed new.qed 0x10M": Difference("an old habit that does no harm", complaint=""),
    "create -f qed new.qed 1E": Difference(
        _ANNOUNCED,
        stdout="",
        complaint=(
            "TOOL: new.qed: QED image size must be a multiple of 512 and no more than "
            "70368744177664 bytes with this cluster and table size; 1152921504606846976 "
            "were asked for"
        ),
        files=("new.qed",),
    ),
    "create -f qed new.qed 7E": Difference(
        _ANNOUNCED,
        stdout="",
        complaint=(
            "TOOL: new.qed: QED image size must be a multiple of 512 and no more than "
            "70368744177664 bytes with this cluster and table size; 8070450532247928832 "
            "were asked for"
        ),
        files=("new.qed",),
    ),
    "create new.raw 1000": Difference(
        "told is the size the disk has", stdout="Formatting 'new.raw', fmt=raw size=1024\n"
    ),
    "create new.raw 1": Difference(
        "told is the size the disk has", stdout="Formatting 'new.raw', fmt=raw size=512\n"
    ),
    "create new.raw 8191P": Difference(_ANNOUNCED, stdout="", files=("new.raw",)),
    "create new.raw 7E": Difference(_ANNOUNCED, stdout="", files=("new.raw",)),
    "create new.raw 9223372036854775807": Difference(
        _ANNOUNCED,
        stdout="",
        complaint="TOOL: new.raw: The image size is too large for file format 'raw'",
        files=("new.raw",),
    ),
    "create -f qed -F foo new.qed 1M": Difference(_ANNOUNCED, stdout="", files=("new.qed",)),
    "create -f qed -b $PWD/data.qed -F qed new.qed": Difference(
        "each directory has its own name", files=("new.qed",)
    ),
    "create -f qed -b folder -F raw new.qed 1M": Difference(
        _FOLDER,
        complaint=(
            "TOOL: new.qed: Could not open 'folder': The file is neither a regular file "
            "nor a block device (backing file)"
        ),
    ),
    "create -f qed -q -o help": Difference(_HELP, stdout=_QED_HELP),
    "commit --drop over.qed": Difference(
        "all options have long names",
        code=0,
        stdout="Image committed.\n",
        complaint="",
        files=("data.qed",),
    ),
    "compare --strict data.qed data.qed": Difference(
        "all options have long names", code=0, stdout="Images are identical.\n", complaint=""
    ),
    "snapshot -f qed -l data.qed": Difference("newer QEMUs have it", code=0, complaint=""),
    "rebase -c -b data.qed -F qed over.qed": Difference(
        "newer QEMUs have it", complaint="TOOL: Compression not supported for this file format"
    ),
    "create --quiet new.raw 1M": Difference(
        "all options have long names", code=0, complaint="", files=("new.raw",)
    ),
    "create --backing data.raw --backing-format raw -f qed new.qed": Difference(
        "all options have long names",
        code=0,
        stdout=(
            "Formatting 'new.qed', fmt=qed size=524288 backing_file=data.raw "
            "backing_fmt=raw cluster_size=65536\n"
        ),
        complaint="",
        files=("new.qed",),
    ),
    "create --format qed new.qed 1M": Difference(
        "all options have long names",
        code=0,
        stdout="Formatting 'new.qed', fmt=qed size=1048576 cluster_size=65536\n",
        complaint="",
        files=("new.qed",),
    ),
    "create -f qed a:b.qed 1M": Difference(
        "no protocol has a name of one letter",
        code=0,
        stdout="Formatting 'a:b.qed', fmt=qed size=1048576 cluster_size=65536\n",
        complaint="",
        files=("a:b.qed",),
    ),
    "create '' 1M": Difference(_EMPTY, stdout="", complaint="TOOL: : The file name is empty"),
    "create . 1M": Difference(
        _ANNOUNCED,
        stdout="",
        complaint="TOOL: .: Could not create image: Could not open '.': Is a directory",
    ),
    "convert -n -O qed -B data.qed -F qed over.qed empty.qed": Difference(
        "what the target is backed by is told by the target", files=("empty.qed",)
    ),
    "convert -n --target-is-zero -B data.qed -F qed -O qed over.qed empty.qed": Difference(
        "an error makes the command fail", code=1
    ),
    "convert --salvage -O qed wrong.qed new.qed": Difference(
        "told is what is lost, and not how it was noticed",
        complaint="TOOL: warning: could not read 4096 bytes at offset 65536: taken as zeroes",
    ),
    "convert --salvage wrong.qed new.raw": Difference(
        "told is what is lost, and not how it was noticed",
        complaint="TOOL: warning: could not read 4096 bytes at offset 65536: taken as zeroes",
    ),
    "convert wrong.qed new.raw": Difference(
        _REMOVED,
        complaint=(
            "TOOL: The data cluster of guest offset 0x10000 at 0x12345 is not aligned to "
            "clusters; run 'blk check' on 'wrong.qed'"
        ),
        files=("new.raw",),
    ),
    "convert -l snapshot.id=1 data.qed new.raw": Difference(
        _NO_SNAPSHOTS,
        complaint=("TOOL: Failed to load snapshot: Block format 'qed' has no internal snapshots"),
    ),
    "convert -l snapshot.name=foo -O qed data.qed new.qed": Difference(
        _NO_SNAPSHOTS,
        complaint=("TOOL: Failed to load snapshot: Block format 'qed' has no internal snapshots"),
    ),
    "convert -l snapshot.id=1,snapshot.name=foo data.qed new.raw": Difference(
        _NO_SNAPSHOTS,
        complaint=("TOOL: Failed to load snapshot: Block format 'qed' has no internal snapshots"),
    ),
    "convert -l '' data.qed new.raw": Difference(
        _NO_SNAPSHOTS,
        complaint=("TOOL: Failed to load snapshot: Block format 'qed' has no internal snapshots"),
    ),
    "convert -t '' data.qed new.raw": Difference(
        "what is wrong is noticed before the target is made", files=("new.raw",)
    ),
    "convert -B nonexistent -F qed -O qed over.qed new.qed": Difference(
        "what is wrong is noticed before the target is made",
        complaint=(
            "TOOL: new.qed: error while converting qed: Could not open 'nonexistent': No "
            "such file or directory (backing file)"
        ),
        files=("new.qed",),
    ),
    "convert -B data.raw -F foo -O qed data.raw new.qed": Difference(
        "what is wrong is noticed before the target is made",
        complaint=(
            "TOOL: new.qed: error while converting qed: Could not open 'data.raw': Unknown "
            "driver 'foo' (backing file)"
        ),
        files=("new.qed",),
    ),
    "convert -B data.qed -F raw -O qed over.qed new.qed": Difference(
        "the same file in another format shows another disk", files=("new.qed",)
    ),
    "convert -O raw -o preallocation=foo data.qed new.raw": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: new.raw: error while converting raw: Unsupported preallocation mode 'foo'"
        ),
    ),
    "convert -O raw -o size=2M data.qed new.raw": Difference(
        "a size that is asked for is given", files=("new.raw",)
    ),
    "convert -o help": Difference(_HELP, stdout=_RAW_HELP),
    "convert -o help data.qed": Difference(_HELP, stdout=_RAW_HELP),
    "convert -O qed -o help data.qed new.qed": Difference(_HELP, stdout=_QED_FILE_HELP),
    "convert data.qed json:{}": Difference(
        "options describe images that exist", complaint="TOOL: 'json:{}' is not the name of a file"
    ),
    "convert data.qed folder": Difference(
        _FOLDER,
        complaint=(
            "TOOL: folder: error while converting raw: Could not create image: Could not "
            "open 'folder': Is a directory"
        ),
    ),
    "convert over.qed data.qed": Difference(
        "said plainly", complaint="TOOL: 'data.qed' is part of the source and cannot be the target"
    ),
    "compare -p data.qed over.qed": Difference(
        "the answer does not stand in the line of the progress",
        stdout="\nContent mismatch at offset 61440!\n",
    ),
    "compare data.qed ''": Difference(_EMPTY, complaint="TOOL: The file name is empty"),
    "compare --object foo data.qed data.qed": Difference(
        "a wrong object is the same mistake in every command", code=1
    ),
    "resize -f raw data.raw 8E": Difference(
        "too large is not negative",
        complaint="TOOL: Value '8E' is out of range for parameter 'size'",
    ),
    "resize -f raw data.raw +8E": Difference(
        "too large is not negative",
        complaint="TOOL: Value '8E' is out of range for parameter 'size'",
    ),
    "resize -f raw data.raw 9223372036854775807": Difference(
        "too large is not negative", complaint="TOOL: Could not resize file: File too large"
    ),
    "resize --image-opts driver=qed,file.filename=data.qed,read-only=on 2M": Difference(
        _OWN_WORDS, complaint="TOOL: Cannot resize 'data.qed': it is open read-only"
    ),
    "resize --shrink over.qed 512k": Difference(
        "QED disks can shrink", code=0, stdout="Image resized.\n", complaint="", files=("over.qed",)
    ),
    "resize --shrink data.qed 512k": Difference(
        "QED disks can shrink", code=0, stdout="Image resized.\n", complaint="", files=("data.qed",)
    ),
    "resize '' 1M": Difference(_EMPTY, complaint="TOOL: The file name is empty"),
    "resize folder 1M": Difference(
        _FOLDER,
        complaint=(
            "TOOL: Could not open 'folder': The file is neither a regular file nor a block device"
        ),
    ),
    "rebase -u -b data.qed -F qed data.raw": Difference(
        _UNWRITTEN,
        complaint=(
            "TOOL: Could not change the backing file to 'data.qed': Operation not supported"
        ),
    ),
    "rebase -b data.qed -F qed data.raw": Difference(
        _UNWRITTEN,
        complaint=(
            "TOOL: Could not change the backing file to 'data.qed': Operation not supported"
        ),
    ),
    "rebase -b '' data.raw": Difference(
        _UNWRITTEN,
        complaint="TOOL: Could not change the backing file to '': Operation not supported",
    ),
    "rebase -b folder -F raw over.qed": Difference(
        _FOLDER,
        complaint=(
            "TOOL: Could not open new backing file 'folder': Could not open 'folder': The "
            "file is neither a regular file nor a block device"
        ),
    ),
    "rebase -b top.qed -F qed over.qed": Difference(
        _NAME_TWICE,
        complaint=(
            "TOOL: Could not open new backing file 'top.qed': Could not open 'top.qed': "
            "Could not open backing file: Could not open 'over.qed': Failed to get shared "
            '"write" lock'
        ),
    ),
    "rebase -b $PWD/data.qed -F qed over.qed": Difference(
        "each directory has its own name", files=("over.qed",)
    ),
    "rebase --backing data.qed -F qed over.qed": Difference(
        "all options have long names", code=0, complaint=""
    ),
    "commit -b data.qed folder/far.qed": Difference(
        _FOLDER, code=0, stdout="Image committed.\n", complaint=""
    ),
    "commit ''": Difference(_EMPTY, complaint="TOOL: The file name is empty"),
    "measure -O qed --size 1M": Difference(
        "QED can be measured",
        code=0,
        stdout="required size: 327680\nfully allocated size: 1638400\n",
        complaint="",
    ),
    "measure -O qed --size 0": Difference(
        "QED can be measured",
        code=0,
        stdout="required size: 327680\nfully allocated size: 327680\n",
        complaint="",
    ),
    "measure -O qed data.raw": Difference(
        "QED can be measured",
        code=0,
        stdout="required size: 1114112\nfully allocated size: 1114112\n",
        complaint="",
    ),
    "measure -O qed -o cluster_size=4k data.qed": Difference(
        "QED can be measured",
        code=0,
        stdout="required size: 110592\nfully allocated size: 1085440\n",
        complaint="",
    ),
    "measure -O raw -o preallocation=foo --size 1M": Difference(
        "what cannot be created cannot be measured",
        code=1,
        stdout="",
        complaint="TOOL: Unsupported preallocation mode 'foo'",
    ),
    "measure --output=json -O qed data.qed": Difference(
        "QED can be measured",
        code=0,
        stdout='{\n    "required": 720896,\n    "fully-allocated": 1638400\n}\n',
        complaint="",
    ),
    "measure -l snapshot.id=1 data.qed": Difference(
        _NO_SNAPSHOTS,
        complaint=("TOOL: Failed to load snapshot: Block format 'qed' has no internal snapshots"),
    ),
}

_ASYNCHRONOUS = "an option that QEMU's usage names, and its parser refuses"

IO_PROGRAM_DIFFERENCES = {
    '-c "read -a 0 4k" data.qed': Difference(
        _ASYNCHRONOUS,
        code=0,
        stdout="read 4096/4096 bytes at offset 0\n4 KiB, 1 ops; TIME\n",
        complaint="",
    ),
    '-c "read -aP 1 64k 4k" data.qed': Difference(
        _ASYNCHRONOUS,
        code=0,
        stdout="read 4096/4096 bytes at offset 65536\n4 KiB, 1 ops; TIME\n",
        complaint="",
    ),
    '-c "read 0x1k 1" data.qed': Difference("an old habit that does no harm", complaint=""),
    '-c "write -znu 0 64k" data.qed': Difference(
        "whole QED clusters are zeroed without writing zeroes",
        code=0,
        stdout="wrote 65536/65536 bytes at offset 0\n64 KiB, 1 ops; TIME\n",
    ),
    '-c "open -o read-only=on data.qed" -c "write 0 1"': Difference(
        "the disk can be read, and the write is what fails",
        complaint="TOOL: Block node is read-only",
    ),
    '-c "open -o driver=qed,file=data.qed" -c length': Difference(
        "a file's name may stand for its options", code=0, stdout="1 MiB\n", complaint=""
    ),
    '-c "open -o foo data.qed" -c length': Difference(
        _OWN_WORDS, complaint="TOOL: can't open device data.qed: Invalid parameter 'foo'"
    ),
    "--image-opts -c length foo": Difference(
        _OWN_WORDS,
        complaint="TOOL: Could not open 'foo': Cannot find device='foo' nor node-name='foo'",
    ),
    '-c "read 0 4k" --image-opts driver=qed,file.filename=data.qed,detect-zeroes=unmap,'
    "discard=ignore": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: can't open: Could not open 'driver=qed,file.filename=data.qed,"
            "detect-zeroes=unmap,discard=ignore': setting detect-zeroes to unmap is not allowed"
        ),
    ),
    '-c "read 0 4k" --image-opts driver=qed,file.filename=data.qed,detect-zeroes=foo': Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: can't open: Could not open 'driver=qed,file.filename=data.qed,"
            "detect-zeroes=foo': invalid parameter value: foo"
        ),
    ),
    '-c "open -o backing.discard=foo over.qed"': Difference(
        _NAME_TWICE,
        complaint=(
            "TOOL: can't open device over.qed: Could not open 'over.qed': Could not open backing"
            " file: Could not open 'data.qed': Invalid discard option"
        ),
    ),
    "--image-opts -c length driver=foo": Difference(
        _OWN_WORDS, complaint="TOOL: can't open: Could not open 'driver=foo': Unknown driver 'foo'"
    ),
    "-c length foo:bar": Difference(
        _OWN_WORDS,
        complaint=(
            "TOOL: can't open device foo:bar: Could not open 'foo:bar': Unknown protocol "
            "'foo' (write 'file:foo:bar' for a file of this name)"
        ),
    ),
    "-c length ''": Difference(_EMPTY, complaint="TOOL: can't open: The file name is empty"),
    '-c "reopen -o read-only=on" -c "write 0 1" data.qed': Difference(
        "the disk can be read, and the write is what fails",
        stdout="",
        complaint="TOOL: Block node is read-only",
        files=("data.qed",),
    ),
}
