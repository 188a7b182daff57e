//! Which number a block takes next: every n-th, that of a cluster that has not started, or one that it draws from a counter.

use crate::builder::{BARRIER_BYTES, Bool, Builder, CLAIM_BYTES, Global, I32, Shared, Var};
use crate::parts::ring::Barriers;

/// Where numbers come from.
#[derive(Clone, Copy)]
pub enum Source<'c> {
    /// The block's own, and every n-th from there.
    EveryNth,
    /// Those of clusters that have not started. Responses come here, with a barrier behind that counts their bytes; behind it one where
    /// blocks of a team ask for the next.
    Claimed(Shared<'c>),
    /// A counter that is 0 before and after the launch. There are `total` tiles; a block that draws a number behind them is done. Lower
    /// numbers are drawn before higher ones, whatever runs at the same time. For blocks that make tiles by themselves.
    Drawn { counter: Global<'c>, total: I32<'c> },
}

/// The numbers of a block's tiles. The blocks of a cluster, which make a tile together, get the same ones.
pub struct Claims<'c> {
    c: &'c Builder<'c>,
    team: u32,
    from: Source<'c>,
    number: Var<'c, I32<'c>>,
    more: Var<'c, Bool<'c>>,
    parity: Var<'c, I32<'c>>,
}

impl<'c> Claims<'c> {
    /// Shared memory that claims take, at a multiple of 16 bytes.
    pub const BYTES: u32 = CLAIM_BYTES + 2 * BARRIER_BYTES;

    /// The numbers of this block. A whole warp calls; `elected` is one lane.
    pub fn new(c: &'c Builder<'c>, team: u32, from: Source<'c>, elected: Bool<'c>) -> Claims<'c> {
        let number = c.var(c.block_x() / team);
        let claims = Claims { c, team, from, number, more: c.var(c.bool(true)), parity: c.var(c.i32(0)) };
        if let Source::Drawn { counter, total } = from {
            claims.draw(counter, total, elected);
        }
        claims
    }

    /// Makes the barriers in `room`. One thread calls.
    pub fn init(c: &'c Builder<'c>, team: u32, room: Shared<'c>) {
        let barriers = room.at(CLAIM_BYTES);
        Barriers::new(barriers, 1).init(c, 1);
        Barriers::new(barriers.at(BARRIER_BYTES), 1).init(c, team);
    }

    /// The number that is to be done; not to be asked for when there is none.
    pub fn number(&self) -> I32<'c> {
        self.number.get()
    }

    /// Whether there is one. Of every n-th there always is; a number may be behind the last tile.
    pub fn is_any(&self) -> Bool<'c> {
        self.more.get()
    }

    /// Goes on to the next. A whole warp calls; `elected` is one lane.
    pub fn advance(&self, elected: Bool<'c>) {
        let c = self.c;
        let response = match self.from {
            Source::EveryNth => return self.number.set(self.number.get() + c.blocks_x() / self.team),
            Source::Drawn { counter, total } => return self.draw(counter, total, elected),
            Source::Claimed(response) => response,
        };
        let (full, asked) = (response.at(CLAIM_BYTES), response.at(CLAIM_BYTES + BARRIER_BYTES));
        c.when(elected, || {
            c.arrive_expecting(full, CLAIM_BYTES);
            if self.team == 1 {
                c.claim_cluster(response, full, false);
            } else {
                // The first block claims when all have room for the response.
                c.arrive_at_peer(asked, 0);
                c.when(c.cluster_rank().eq(0), || {
                    c.wait_for_peers(asked, self.parity.get());
                    c.claim_cluster(response, full, true);
                });
            }
        });
        c.warp_barrier();
        c.wait_for(full, self.parity.get());
        let (is_any, block) = c.claimed(response);
        self.more.set(is_any);
        self.number.set(block / self.team);
        self.parity.set(self.parity.get() ^ 1);
        // Read before the next response takes its place.
        c.publish_shared();
        c.warp_barrier();
    }

    /// Every block draws one number behind the last tile; who draws the last of those leaves the counter at 0.
    fn draw(&self, counter: Global<'c>, total: I32<'c>, elected: Bool<'c>) {
        let c = self.c;
        let drawn = c.var(c.i32(0));
        c.when(elected, || {
            let number = c.count_after(counter, c.i32(1));
            drawn.set(number);
            c.when(number.eq(total + c.blocks_x() - 1), || {
                c.fence_gpu();
                c.store_i32(counter, c.i32(0));
            });
        });
        c.warp_barrier();
        // All lanes but one have 0.
        self.number.set(c.warp_max(drawn.get()));
    }
}
